"""Makes the process that imports this module a session leader: a closed terminal does not end it.

Only the process of `multiprocessing.forkserver` is changed. Our other processes are forked from it
(`forks.prepare`), and no other code of ours runs in it. In other processes the import does nothing.
"""

from __future__ import annotations

import os
import sys

if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    os.setsid()
