"""The history checker: the events replayed and compared with the tables."""
