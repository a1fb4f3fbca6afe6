"""A running stack as other programs find it: its home, its addresses, its errors.

One process holds the home (`home`). `stack` tells other programs the addresses of its servers.
"""

from __future__ import annotations
