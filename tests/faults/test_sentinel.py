"""Valkey fails over to its replica under agents: service is back in seconds, every request is answered."""

from __future__ import annotations

import ssl
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis

from assignment_workers.client import Assigned, Unavailable
from assignment_workers.devstack import valkey
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.runtime.home import Home
from tests.support.processes import Agents, Keeper, running, wait_until
from tests.support.root import ROOT
from tests.support.sentinels import Sentinels, sentinels
from tests.support.servers import OwnServer, wire

WITHIN_SECONDS = 10.0
"""Service is back, where a server is left to serve."""
CONFIG = ROOT / "celeryconfig.py"
TENDED = "SELECT count(*) FROM assignment.job_runs WHERE job = 'agent.tend'"


@pytest.fixture
def servers(test_home: Home, guardian: Guardian, tmp_path: Path) -> Iterator[Sentinels]:
    with sentinels(test_home.path / tmp_path.name, guardian) as made:
        yield made


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_a_failover_by_sentinels_leaves_no_request_without_an_answer(
    servers: Sentinels, database_url: str, tmp_path: Path, how: str
) -> None:
    """Killed, its replica lacks the last messages; either way it comes back, and follows."""
    config = tmp_path / "celeryconfig.py"
    often = "beat_schedule['tend agents']['schedule'] = 1.0"
    config.write_text(f"{CONFIG.read_text()}\n{often}\n")
    with running(database_url, servers.url, tmp_path) as stack:
        with Keeper(stack, "sequencer", "sequencer"):
            stack.built()
            stack.start("beat", celery_config=str(config))
            with Agents(stack, 8) as agents:
                wait_until(lambda: stack.value(TENDED), "beat's first job")
                worked(agents, 50)
                if how == "frozen":
                    at = time.monotonic()
                    servers.freeze()
                else:
                    servers.line.cut()
                    worked(agents, 20)
                    at = time.monotonic()
                    servers.primary.kill()
                wait_until(lambda: agents.answered[-1][0] > at + 1.0, "an answer", seconds=60)
                gap = next(moment for moment, *_ in agents.answered if moment > at + 1.0) - at
                tended = stack.value(TENDED)
                if how == "frozen":
                    servers.thaw()
                else:
                    servers.primary.start()
                wait_until(lambda: servers.is_replica(servers.primary), "it to follow", seconds=60)
                worked(agents, 50)
                wait_until(lambda: stack.value(TENDED) > tended, "beat's jobs", seconds=60)
        print(f"{how}: {gap:.1f} s without an answer")
        assert gap < WITHIN_SECONDS
        assert all(isinstance(each, Unavailable) for each in agents.unanswered)
        stack.assert_healthy()


def test_a_name_that_moves_to_the_new_primary_is_followed(
    test_home: Home, guardian: Guardian, database_url: str, tmp_path: Path
) -> None:
    """As of a managed Redis: no connection is cut, and the old primary answers READONLY."""
    directory = test_home.path / tmp_path.name
    with (
        sentinels(directory, guardian, count=0) as servers,
        wire(servers.primary.url) as name,
        running(database_url, name.url, tmp_path) as stack,
    ):
        stack.start("sequencer")
        stack.built()
        with Agents(stack, 8) as agents:
            worked(agents, 50)
            name.lead_to(servers.replica.url)
            at = time.monotonic()
            servers.promote()
            wait_until(lambda: agents.answered[-1][0] > at + 1.0, "an answer", seconds=60)
            gap = next(moment for moment, *_ in agents.answered if moment > at + 1.0) - at
            worked(agents, 50)
        assert gap < WITHIN_SECONDS
        assert all(isinstance(each, Unavailable) for each in agents.unanswered)
        stack.assert_healthy()


def test_a_redis_with_tls_and_a_user_of_its_own_serves_every_process(
    test_home: Home, guardian: Guardian, database_url: str, tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    made += ["-nodes", "-days", "1", "-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    prepare = partial(valkey.prepare, fsync=False)
    own = OwnServer(prepare, test_home.path / tmp_path.name, guardian)
    try:
        with redis.Redis.from_url(own.url) as admin:
            admin.execute_command("ACL", "SETUSER", "ann", "on", ">hun%ter", "~*", "&*", "+@all")
        with wire(own.url, tls) as line:
            at = line.url.rpartition("@")[2]
            url = f"rediss://ann:hun%25ter@{at}?ssl_ca_certs={certificate}"
            with running(database_url, url, tmp_path) as stack:
                stack.start("sequencer")
                assert isinstance(stack.built().request_next(1), Assigned)
                beat = stack.start("beat")
                wait_until(lambda: "Acquired lock" in beat.said(), "beat to run")
    finally:
        own.stop()


def worked(agents: Agents, count: int) -> None:
    """So many more answers have come."""
    seen = len(agents.answered)
    wait_until(lambda: len(agents.answered) >= seen + count, f"{count} answers", seconds=60)
