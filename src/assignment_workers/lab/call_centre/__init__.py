"""A simulated call centre on a real stack, with faults where asked for, and its verdict."""
