"""The operations: claim, finish, expire, regenerate, publish, clean.

An operation that changes which users may be assigned takes a `FencedTransaction`, which the
sequencer begins for a message of the assignment queue. All other operations take a connection. A
package imports only from packages that are listed before it:

- the modules beside this file: answers, lanes, the fenced transaction, suppressions
- `crm`, `agents`, `callbacks`, `generations`, `pools`: facts about users and agents, and the queues
- `lifecycle`, `claims`: assignments, from the claim to the end
- `history`, `reports`: the check of past events, and the present state
"""

from __future__ import annotations
