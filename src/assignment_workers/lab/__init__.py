"""The laboratory: a simulated call centre, and the replay of the original dialer's incident.

In the incident, a rebuild of the queue deleted a row while the row was being assigned to an agent.
"""
