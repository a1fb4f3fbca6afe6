"""Claims: one user for each request, and one answer for each request and command."""
