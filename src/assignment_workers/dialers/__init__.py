"""Packaged dialers: `claims` is used where no `dialerconfig.py` is configured."""

from __future__ import annotations
