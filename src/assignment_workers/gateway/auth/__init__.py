"""Callers of the gateway: tokens, sessions and the access log."""
