"""Reports for operators: status, figures, explanations, the doctor."""
