"""The pure rules of the dialer queues: eligibility, order, and the effects of outcomes.

They use no database session and no clock.
"""

from __future__ import annotations
