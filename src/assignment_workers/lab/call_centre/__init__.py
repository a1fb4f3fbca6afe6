"""A simulated call centre on a real stack, with optional faults, and its verdict."""
