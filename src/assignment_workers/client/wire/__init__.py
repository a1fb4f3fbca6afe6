"""Transport of the client's commands to the workers, and of the answers back."""
