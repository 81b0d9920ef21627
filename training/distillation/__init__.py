"""Distillation: its objective, the student, the teacher, and what both are compared by."""
