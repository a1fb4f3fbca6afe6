"""The HTTP routes of agents, operators and the gateway itself."""
