"""Take over an existing dialer's database: say what is there, bring it to ours, and go back."""
