"""Makes the process that imports this the leader of a session: a closed terminal does not end it.

For the process that our forks come from, which has no other place for a line of ours. Imported
elsewhere it does nothing.
"""

from __future__ import annotations

import os
import sys

if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    os.setsid()
