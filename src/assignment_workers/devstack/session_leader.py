"""A module whose import makes the forkserver a session leader.

The forkserver is the process of `multiprocessing.forkserver`, from which our other processes are
forked (`forks.prepare`). As a session leader it is not ended when the terminal is closed. In every
other process the import does nothing. The forkserver itself calls no function of ours; it only
imports our modules. The change is therefore made by an import.
"""

from __future__ import annotations

import os
import sys

if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    os.setsid()
