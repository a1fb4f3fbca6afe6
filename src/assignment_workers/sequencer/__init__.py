"""Exactly one writer: who leads, how its transactions are fenced, how messages keep order."""

from __future__ import annotations
