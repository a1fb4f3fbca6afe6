"""The stream of events: the feed, its readers, and the responses."""
