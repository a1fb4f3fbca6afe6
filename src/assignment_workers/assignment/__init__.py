"""The operations: claim, finish, expire, regenerate, publish, clean.

An operation that changes which users may be handed out takes a `FencedTransaction` on the
assignment queue. The others take a connection of their own. Each package imports only those above
it here:

- the modules beside this file: answers, lanes, the fenced transaction, suppressions
- `crm`, `agents`, `callbacks`, `generations`, `pools`: facts about users and agents, and the queues
- `lifecycle`, `claims`: assignments, from the claim to the end
- `history`, `reports`: the check of past events, and the present state
"""

from __future__ import annotations
