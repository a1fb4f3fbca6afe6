"""The HTTP interface: a FastAPI application that sends agents' calls to the workers.

A gateway has no lasting data of its own, so any number of gateways may run.
"""
