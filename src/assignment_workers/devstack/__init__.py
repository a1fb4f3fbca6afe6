"""The development stack: embedded servers and their supervisor.

In the home (`runtime.home`) `postgres` and `valkey` prepare a server each, and `supervisor` keeps
them and our own processes running. `up` puts these together, `guardian` ends what a killed
supervisor would leave behind, and `demo` fills a new database. No production code imports this
package.
"""

from __future__ import annotations
