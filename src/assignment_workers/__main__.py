"""`python -m assignment_workers` is the console script."""

from __future__ import annotations

from assignment_workers.cli import main

if __name__ == "__main__":
    main()
