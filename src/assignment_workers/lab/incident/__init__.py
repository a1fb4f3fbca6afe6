"""The replay of the incident: the original dialer and this project under the same load.

In the incident, a rebuild of the original dialer's queue deleted a row while the row was being
assigned to an agent (original-dialer section 0).
"""
