"""Callbacks and missed calls that are due."""
