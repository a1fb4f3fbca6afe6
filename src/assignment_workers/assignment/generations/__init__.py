"""Generations of the dialer queues: built, published, drained, purged."""
