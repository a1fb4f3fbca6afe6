"""The database tables (ours, the dialer's and the CRM's), connections to them, and migrations."""

from __future__ import annotations
