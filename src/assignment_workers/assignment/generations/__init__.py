"""Generations of the queues: built, published, drained, purged."""
