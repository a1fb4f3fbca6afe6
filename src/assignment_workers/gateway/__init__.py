"""The HTTP interface: FastAPI over the batching client. Stateless, so any number may run."""
