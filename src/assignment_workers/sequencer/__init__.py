"""The single writer of a lane: leadership, fenced transactions and the order of messages."""

from __future__ import annotations
