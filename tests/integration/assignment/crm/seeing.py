"""A call centre that sees a CRM elsewhere, and what such a CRM does."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy import make_url

from assignment_workers.adoption.inspect import inspect
from assignment_workers.assignment.crm.external_crm import Crm, configured
from assignment_workers.assignment.reports.status import CrmStatus
from assignment_workers.policy.process_dialer import loaded
from tests.support.world import (
    World,
)

TIMEOUT = timedelta(seconds=8)
"""Longer than any answer takes on a machine that is busy with other tests."""


@contextmanager
def seeing(world: World, url: str, **settings: Any) -> Iterator[Crm]:
    """Let the world read its CRM at this address."""
    assert world.crm is not None
    world.set(
        crm_database_url=url, crm_mapping=world.crm.name, **{"crm_timeout": TIMEOUT} | settings
    )
    with attached(world) as made:
        yield made


@contextmanager
def attached(world: World) -> Iterator[Crm]:
    """Let the world read the CRM that its settings name."""
    made = configured(loaded(), world.settings)
    assert made is not None
    world.read_crm(made)
    try:
        yield made
    finally:
        made.close()


def age_mirror(world: World, seconds: int = 900) -> None:
    """The mirror was read so long ago: the next job reads it again."""
    world.execute(
        "UPDATE assignment.crm_reads SET read_at = read_at - make_interval(secs => :s)", s=seconds
    )


def nobody_was_removed(world: World, *, but: str = "") -> bool:
    kinds = {"taken_out", "put_off", "converted", "callback_cancelled", "suppressed"} - {but}
    return world.events(*kinds) == []


@contextmanager
def silent(url: str) -> Iterator[str]:
    """The address of a server that takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = make_url(url).port
        yield url.replace(f":{port}/", f":{listening.getsockname()[1]}/")


def crm_told(world: World) -> CrmStatus:
    return world.status("nobody").crm


def verdicts(world: World) -> dict[str, str]:
    with world.engine.connect() as connection:
        tables = inspect(connection, world.external_crm).tables
    return {each.table: each.verdict for each in tables if "CRM" in each.table}
