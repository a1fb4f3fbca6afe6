"""Hand call-centre agents the next user to call: each user to one agent, in order, once."""

from __future__ import annotations
