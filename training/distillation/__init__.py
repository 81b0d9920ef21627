"""Distillation: a student, its teacher, and what both are compared by."""
