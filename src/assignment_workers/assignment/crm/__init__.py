"""The CRM: its facts, read from our own database or from another one."""
