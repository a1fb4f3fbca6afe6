"""An agent's sessions and heartbeats."""
