"""Hand call-centre agents the next user to call, in order, and each user to one agent at a time."""

from __future__ import annotations
