"""The stream of events: the feed, its readers, and the responses.

The feed reads new events from the database. A reader is the open stream of one client.
"""
