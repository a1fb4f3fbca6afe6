"""The development stack: embedded servers and their supervisor.

`postgres` and `valkey` each prepare a server in the home (`runtime.home`). `supervisor` keeps the
servers and our own processes running. `up` puts these together, `guardian` ends the processes that
a killed supervisor would leave behind, and `demo` fills a new database. Only the laboratory (`lab`)
and some commands (`cli`), such as `up`, import this package.
"""

from __future__ import annotations
