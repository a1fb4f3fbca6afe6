"""What a machine needs to run everything by itself: the home, the embedded servers, the supervisor.

The home (`home`) is held by one process. In it `postgres` and `valkey` prepare a server each,
`supervisor` keeps them and our own processes running, and `stack` tells other programs where they
are. `up` puts these together, `guardian` ends what a killed supervisor would leave behind, and
`demo` fills a new database.
"""

from __future__ import annotations
