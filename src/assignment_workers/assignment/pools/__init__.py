"""Pools: the users who belong to each dialer queue, discovered, converted and aged."""
