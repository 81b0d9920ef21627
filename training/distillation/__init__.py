"""Distillation: objective, student, teacher, and their comparison."""
