"""Sessions and heartbeats of agents."""
