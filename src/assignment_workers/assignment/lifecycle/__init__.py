"""The life of an assignment after its claim."""
