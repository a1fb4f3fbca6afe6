"""Pools: users discovered, converted and aged."""
