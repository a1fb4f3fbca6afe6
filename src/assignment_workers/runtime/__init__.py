"""A running stack as other programs find it: its home, its addresses, its errors.

The home (`home`) is held by one process. `stack` tells other programs where the servers in it are.
"""

from __future__ import annotations
