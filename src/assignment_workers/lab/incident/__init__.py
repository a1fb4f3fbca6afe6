"""The incident, before and after: the original's algorithms and ours on the same load."""
