"""The client's way to the queue: batches, brokers, lanes and clocks."""
