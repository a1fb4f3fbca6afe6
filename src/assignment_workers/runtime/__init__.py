"""A running stack as other programs find it: its home, its addresses, its errors.

The home is the directory of a stack's data and logs; one process at a time holds it (`home`).
`stack` tells other programs the addresses of the stack's servers.
"""

from __future__ import annotations
