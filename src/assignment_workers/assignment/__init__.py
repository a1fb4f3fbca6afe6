"""The operations: claim, finish, expire, regenerate, publish, clean.

An operation that changes which users may be assigned takes a `FencedTransaction`, which the
sequencer begins for a message of the assignment queue. All other operations take a connection. A
package imports only from packages that are listed before it, and from modules beside this file:

- `crm`, `agents`, `callbacks`, `generations`, `pools`: facts about users and agents, and the queues
- `lifecycle`, `claims`: assignments, from the claim to the end
- `history`, `reports`: the check of past events, and the present state

The modules beside this file have, among others, the answers, the lanes, the fenced transaction and
the suppressions. Some of these modules import packages, too. The import contract
`assignment-layers` in pyproject.toml has the order of all packages and modules.
"""

from __future__ import annotations
