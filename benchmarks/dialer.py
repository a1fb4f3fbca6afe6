"""The dialer that is measured: the packaged one, for which the demo CRM has users."""

from __future__ import annotations

from assignment_workers.dialers.claims import dialer
from assignment_workers.policy.process_dialer import use

use(dialer)
POLICIES = dialer.policies
UNSIGNED_USERS, OUTSTANDING_REQUESTS = POLICIES.values()
