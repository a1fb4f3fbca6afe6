"""The laboratory: a simulated call centre and the replay of the incident."""
