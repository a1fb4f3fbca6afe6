"""The health of a whole system, in one model that every page, command and metric reads."""
