"""The HTTP interface: a FastAPI application that passes requests and commands to the workers.

A gateway has no lasting data of its own, so any number of gateways may run.
"""
