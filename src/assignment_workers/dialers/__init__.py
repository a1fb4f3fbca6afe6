"""Packaged dialers: `claims` is used where no `dialerconfig.py` is configured.

A dialer defines dialer queues, their rules, and the outcomes of calls. `claims` is the dialer of a
company that collects its customers' claims against lenders.
"""

from __future__ import annotations
