"""Makes the process that imports this module a session leader: a closed terminal does not end it.

The process is that of `multiprocessing.forkserver`, from which our other processes are forked. No
other code of ours runs in it (`forks.prepare`). In any other process the import does nothing.
"""

from __future__ import annotations

import os
import sys

if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    os.setsid()
