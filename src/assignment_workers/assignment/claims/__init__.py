"""Claims: one user for each request, and each answer once."""
