"""The development stack: embedded servers and their supervisor.

`postgres` and `valkey` each prepare a server in the home (`runtime.home`). `supervisor` keeps the
servers and our own processes running. `up` puts these together, `guardian` ends the processes that
a killed supervisor would leave behind, and `demo` fills a new database. Only two other parts of the
program import this package: the laboratory (`lab`), which simulates a call centre, and some
commands (`cli`), such as `up`.
"""

from __future__ import annotations
