"""Reads for operators: status, figures, explanations, the doctor."""
