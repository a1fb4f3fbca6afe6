"""The command line, `assignment-workers`. Exit codes: 0 success, 1 a problem, 2 misuse or refusal.

The exit code is 2 for wrong usage, for an invalid setting, an invalid definition of the dialer or
an unreadable list, for a missing optional package, and for the answer `Refused`. It is also 2 for a
soak test that was too short to judge everything. It is 130 if the command was interrupted (Ctrl-C).
"""

from __future__ import annotations

import sys

try:
    from assignment_workers.cli.main import main
except ModuleNotFoundError as error:
    if (error.name or "").startswith("assignment_workers"):
        raise
    sys.stderr.write(
        f"assignment-workers: {error.name} is not installed; the command line comes with the extra "
        "`server`: install the package with it, as in assignment_workers-VERSION.whl[server]\n"
    )
    sys.exit(2)

__all__ = ["main"]
