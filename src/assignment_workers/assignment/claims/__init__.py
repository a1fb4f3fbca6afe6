"""Claims: assign a user to each request, and store one answer for each request and command."""
