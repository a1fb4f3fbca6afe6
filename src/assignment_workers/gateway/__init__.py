"""The HTTP door: FastAPI over the coalescing client. Stateless, so any number may run."""
