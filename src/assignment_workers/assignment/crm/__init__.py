"""The CRM: its facts in our own database or from another one."""
