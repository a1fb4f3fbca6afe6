"""The operations: claim, finish, expire, regenerate, publish, clean.

An operation that changes which users may be assigned takes a `FencedTransaction`, which the
sequencer begins for a message of the assignment queue. All other operations take a connection. A
package imports only from packages that are listed before it, and from modules beside this file:

- `crm`: the facts about users, read from the CRM
- `agents`: the sessions and heartbeats of agents
- `callbacks`: callbacks and missed calls
- `generations`: the builds of the dialer queues
- `pools`: the users who belong to each dialer queue
- `lifecycle`: assignments after the claim, up to their end
- `claims`: the claim, and one stored answer for each request and command
- `history`: the check of past events
- `reports`: reports for operators about the present state and past periods

The modules beside this file have, among others, the answers, the lanes, the fenced transaction and
the suppressions. Some of these modules import packages, too. The import contract
`assignment-layers` in pyproject.toml has the order of all packages and modules.
"""

from __future__ import annotations
