"""The operations: claim, finish, expire, regenerate, publish, clean.

They work on what they are given. Those that change who may be handed out take a `Turn`: a fenced
transaction on the assignment queue. The others take a connection of their own.
"""

from __future__ import annotations
