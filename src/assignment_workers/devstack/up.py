"""The command `up`, which runs the embedded servers and our processes in the foreground."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from assignment_workers.devstack import forks, postgres, secret, valkey
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.devstack.log import Log
from assignment_workers.devstack.orphans import WorkerRecord
from assignment_workers.devstack.ports import LOOPBACK, require_free
from assignment_workers.devstack.process import ProcessSpec
from assignment_workers.devstack.server import Server
from assignment_workers.devstack.supervisor import Interrupted, Signals, Supervisor
from assignment_workers.errors import AssignmentWorkersError
from assignment_workers.runtime import home, stack
from assignment_workers.runtime.errors import StackFailed
from assignment_workers.runtime.stack import Stack
from assignment_workers.settings import Settings

READY_SECONDS = 60.0
"""The most seconds to wait until all processes of the stack work; then the start has failed."""
GATEWAY, FLOWER = "gateway", "flower"
WORKERS = "workers.json"
"""The file in a stack's home that names its running workers (`orphans.WorkerRecord`)."""
LOGS = "logs"
"""The folder in a stack's home that has a rotated log file for each process."""


@dataclass(frozen=True)
class Steps:
    """The functions that `up` calls during a start, each in a thread other than the main one."""

    migrate: Callable[[str], object]
    """A function that migrates the database at this address to the current schema."""
    seed: Callable[[Settings], object] | None
    """A function that fills a new database with the demo CRM; None for a stack without a demo."""
    missing: Callable[[Settings], str | None]
    """A function that returns, in a few words, why the processes do not work yet; None once they
    do.
    """
    announce: Callable[[Stack], object]
    """A function that prints the stack's addresses for the person who started it."""


def processes(*, sequencers: int = 1, lanes: Sequence[str] = ()) -> list[ProcessSpec]:
    """Return the processes of a stack in the order of their start; they are stopped in reverse.

    `sequencers` is the number of sequencers per lane: one leads, the others stand by. `lanes` are
    the lanes besides the default one.
    """
    command = [*forks.PYTHON, "process"]
    workers = []
    for lane in ("", *lanes):
        name = f"sequencer-{lane}" if lane else "sequencer"
        led = [*command, "sequencer", *(["--lane", lane] if lane else [])]
        workers += [
            ProcessSpec(name if number == 1 else f"{name}-{number}", led, is_ours=True)
            for number in range(1, sequencers + 1)
        ]
    others = ("maintenance", FLOWER, "beat", GATEWAY)
    return [
        *workers,
        *(ProcessSpec(name, [*command, name], is_ours=True) for name in others),
    ]


def up(
    settings: Settings,
    children: Sequence[ProcessSpec],
    steps: Steps,
    *,
    port: int | None = None,
    output: TextIO = sys.stdout,
    verbose: bool = True,
) -> int:
    """Run the stack until a signal or an error ends it; return the exit code.

    The exit code is 0 after a signal, and the error's own `exit_code` after an error. `children`
    are the processes to run (see `processes`). `port` is the gateway's port; None: the port in
    `settings`. The output of the processes goes to `logs/` in the home (the stack's directory), and
    to `output` if `verbose`. Call it in the main thread. Raises `HomeHeld`, `HomeUnusable` and
    `PortTaken` before anything is started; later errors are logged in one line.
    """
    if port is not None:
        settings = settings.model_copy(update={"gateway_port": port})
    with home.hold(settings.home) as held:
        workers = WorkerRecord(held.path / WORKERS)
        orphans = workers.end_orphans()
        _require_ports(settings, children)
        folder = held.path / LOGS
        log = Log(output, colour=not os.environ.get("NO_COLOR"), folder=folder, verbose=verbose)
        if orphans:
            log.say(f"ended {orphans} processes of a stack that was killed on this home")
        log.say(f"starting; data and logs are in {held.path}")
        log.introduce("postgres", "valkey", *(child.name for child in children))
        with (
            Signals() as signals,
            Guardian(keeps=[held.descriptor], record=workers) as guardian,
        ):
            with Supervisor(log, guardian, signals) as supervisor:
                code = _run(
                    settings, children, steps, supervisor=supervisor, log=log, path=held.path
                )
            log.say(f"everything has ended; the data are kept in {held.path}")
            log.close()
    return code


def _run(
    settings: Settings,
    children: Sequence[ProcessSpec],
    steps: Steps,
    *,
    supervisor: Supervisor,
    log: Log,
    path: Path,
) -> int:
    try:
        servers = supervisor.call(lambda: _plan(settings, path))
        resolved = _resolved(settings, servers, path)
        children = _with_environment(resolved, children)
        for server in servers.values():
            supervisor.call(server.make)
            supervisor.start(server.spec)
        supervisor.wait_ready()
        supervisor.call(lambda: steps.migrate(resolved.database))
        if steps.seed:
            seed = steps.seed
            supervisor.call(lambda: seed(resolved))
        supervisor.start(*children)
        _wait_until_working(resolved, steps, supervisor)
        ready = _stack(resolved, children)
        stack.write(path, ready)
        with contextlib.suppress(BrokenPipeError):  # the output is closed: the stack runs on
            supervisor.call(lambda: steps.announce(ready))
        supervisor.supervise()
    except Interrupted as signal:
        log.say(f"{signal}: stopping")
    except AssignmentWorkersError as error:
        log.say(f"stopping: {error}")
        return error.exit_code
    finally:
        stack.remove(path)
    return 0


def _plan(settings: Settings, path: Path) -> dict[str, Server]:
    """Return the embedded servers to run: one for each server address that the settings leave out.

    The keys are the names of these settings: `redis_url`, `database_url`.
    """
    servers: dict[str, Server] = {}
    if settings.redis_url is None:
        servers["redis_url"] = valkey.prepare(path / "valkey")
    if settings.database_url is None:
        servers["database_url"] = postgres.plan(path / "postgres")
    return servers


def _resolved(settings: Settings, servers: Mapping[str, Server], path: Path) -> Settings:
    """Return the settings with the addresses of the embedded servers and the stack's secrets."""
    addresses = {variable: server.url for variable, server in servers.items()}
    redis_url = addresses.get("redis_url", settings.redis_url)
    kept = secret.remembered(path)
    return settings.model_copy(
        update={
            **addresses,
            "home": path,
            "broker_url": settings.broker_url or redis_url,
            "stack_token": kept.gateway_token,
            "flower_basic_auth": settings.flower_basic_auth or kept.flower_auth,
            "number_key": settings.number_key or kept.number_key,
            "embedded": len(servers) == 2,  # noqa: PLR2004 - both of them
        }
    )


def _with_environment(resolved: Settings, children: Sequence[ProcessSpec]) -> list[ProcessSpec]:
    environment = {
        "DATABASE_URL": resolved.database,
        "REDIS_URL": resolved.redis,
        "BROKER_URL": resolved.broker_url or resolved.redis,
        "ASSIGNMENT_WORKERS_HOME": str(resolved.home),
        "ASSIGNMENT_WORKERS_GATEWAY_PORT": str(resolved.gateway_port),
        "ASSIGNMENT_WORKERS_EMBEDDED": str(resolved.embedded).lower(),
        "ASSIGNMENT_WORKERS_STACK_TOKEN": resolved.stack_token or "",
        "ASSIGNMENT_WORKERS_FLOWER_BASIC_AUTH": resolved.flower_basic_auth or "",
        "ASSIGNMENT_WORKERS_NUMBER_KEY": resolved.number_key or "",
        "PYTHONUNBUFFERED": "1",
    }
    return [
        replace(
            each,
            env={
                **environment,
                **({"DATABASE_URL": ""} if each.name in stack.WITHOUT_DATABASE else {}),
                **_metrics_port(resolved, place),
                **each.env,
            },
        )
        for place, each in enumerate(children)
    ]


def _metrics_port(settings: Settings, place: int) -> dict[str, str]:
    """Return the environment variable with the port at which a process serves its metrics.

    The result maps the variable's name to its value. The port is the setting `metrics_port` plus
    `place`, the position of the process in the stack. Without that setting, the result is empty.
    """
    if settings.metrics_port is None:
        return {}
    return {"ASSIGNMENT_WORKERS_METRICS_PORT": str(settings.metrics_port + place)}


def _wait_until_working(resolved: Settings, steps: Steps, supervisor: Supervisor) -> None:
    def missing() -> str | None:
        try:
            return steps.missing(resolved)
        except AssignmentWorkersError as error:
            return str(error)

    deadline = time.monotonic() + READY_SECONDS
    while what := supervisor.call(missing):
        if time.monotonic() > deadline:
            raise StackFailed(f"the stack does not work after {READY_SECONDS:g} s: {what}")
        supervisor.supervise(0.1)


def _require_ports(settings: Settings, children: Sequence[ProcessSpec]) -> None:
    names = {child.name for child in children}
    if FLOWER in names:
        require_free(
            settings.flower_port, purpose="Flower", setting="ASSIGNMENT_WORKERS_FLOWER_PORT"
        )
    if GATEWAY in names:
        require_free(
            settings.gateway_port,
            purpose="the gateway",
            setting="--port or ASSIGNMENT_WORKERS_GATEWAY_PORT",
        )


def _stack(resolved: Settings, children: Sequence[ProcessSpec]) -> Stack:
    names = {child.name for child in children}
    return Stack(
        database_url=resolved.database,
        redis_url=resolved.redis,
        broker_url=resolved.broker_url or resolved.redis,
        gateway_url=f"http://{LOOPBACK}:{resolved.gateway_port}" if GATEWAY in names else None,
        flower_url=f"http://{LOOPBACK}:{resolved.flower_port}" if FLOWER in names else None,
        gateway_token=resolved.stack_token if GATEWAY in names else None,
        flower_auth=_first_login(resolved) if FLOWER in names else None,
        number_key=resolved.number_key,
        pid=os.getpid(),
        started_at=datetime.now(UTC),
    )


def _first_login(settings: Settings) -> str | None:
    """Return the first of Flower's logins, which are separated by commas."""
    return settings.flower_basic_auth and settings.flower_basic_auth.partition(",")[0]
