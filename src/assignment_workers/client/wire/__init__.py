"""Transport of the client's commands: batches, brokers, lanes and clocks."""
