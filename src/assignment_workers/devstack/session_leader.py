"""Makes the process that imports this module a session leader: a closed terminal does not end it.

It is for the process that our forks come from, in which no other code of ours runs. In any other
process the import does nothing.
"""

from __future__ import annotations

import os
import sys

if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    os.setsid()
