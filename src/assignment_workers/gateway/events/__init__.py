"""The stream of events: the feed, its readers, the responses."""
