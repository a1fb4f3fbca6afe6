"""The dialer queues' rules, pure: who is eligible, in what order, what an outcome does.

No session, no clock.
"""

from __future__ import annotations
