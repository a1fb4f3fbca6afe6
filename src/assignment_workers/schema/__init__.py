"""The database: our tables, the dialer's own, the CRM's, and how they are brought up to date."""

from __future__ import annotations
