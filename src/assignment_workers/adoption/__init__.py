"""Take over an existing dialer's database: inspect it, migrate it, and roll back."""
