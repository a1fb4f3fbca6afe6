"""celeryconfig.py: an operator may change it, but not what the assignment queue rests on."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from assignment_workers.errors import UsageError
from assignment_workers.settings import Settings
from assignment_workers.tasks.app import create_app
from assignment_workers.tasks.task_handler import App
from tests.support.root import ROOT

SHIPPED = (ROOT / "celeryconfig.py").read_text(encoding="utf-8")
REDIS = "redis://redis.example:6379/0"

ORDERED = {
    "assignment.request",
    "assignment.request_many",
    "assignment.complete",
    "assignment.skip",
    "assignment.reassign",
    "assignment.release",
    "assignment.take_back",
    "assignment.release_unclaimed",
    "assignment.renew",
    "assignment.accept",
    "assignment.defer",
    "assignment.close",
    "assignment.change_settings",
    "agent.state",
    "agent.end_sessions",
    "assignment.expire",
    "assignment.probe",
    "generation.publish",
    "queue.pause",
    "queue.resume",
    "queue.drain",
    "user.suppress",
    "user.lift_suppression",
    "user.flip_suppression_list",
    "user.drop_suppression_list",
    "user.bar",
    "user.lift_bar",
    "user.place",
    "assignment.finish_many",
    "queue.remove_converted",
    "queue.repair",
}
"""The tasks that change who may be handed out."""


def settings(file: Path) -> Settings:
    """Settings that name this file."""
    given = {"REDIS_URL": REDIS, "ASSIGNMENT_WORKERS_CELERY_CONFIG": str(file)}
    return Settings.from_environment(given)


def app_with(folder: Path, change: str = "") -> App:
    """The application with the file as it is shipped and one more line."""
    file = folder / "celeryconfig.py"
    file.write_text(f"{SHIPPED}\n{change}\n", encoding="utf-8")
    return create_app(settings(file))


def queue_of(app: App, task: str) -> str:
    """Where a message of this task goes when its sender names no Celery queue."""
    return str(app.amqp.router.route({}, task)["queue"].name)


def test_a_file_saved_twice_within_a_second_is_read_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "celeryconfig.py"
    for seconds in (31, 32):
        file.write_text(f"{SHIPPED}\nresult_expires = {seconds}\n", encoding="utf-8")
        os.utime(file, (1_800_000_000, 1_800_000_000))
        assert create_app(settings(file)).conf.result_expires == seconds
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


def test_the_file_as_shipped_keeps_what_changes_who_is_handed_out_in_one_order(
    tmp_path: Path,
) -> None:
    app = app_with(tmp_path)
    tasks = {name for name in app.tasks if not name.startswith("celery.")}
    assert {name for name in tasks if queue_of(app, name) == "assignment"} == ORDERED
    assert queue_of(app, "agent.heartbeats") == "heartbeats"
    rest = tasks - ORDERED - {"agent.heartbeats"}
    assert {queue_of(app, name) for name in rest} == {"maintenance"}
    assert all(app.tasks[name].acks_late for name in tasks)


def test_beat_s_jobs_are_tasks_that_there_are_and_lapse(tmp_path: Path) -> None:
    app = app_with(tmp_path)
    schedule: dict[str, dict[str, Any]] = app.conf.beat_schedule
    assert {job["task"] for job in schedule.values()} <= app.tasks.keys()
    assert all(job["options"]["expires"] > 0 for job in schedule.values())


def test_the_servers_are_those_of_the_settings(tmp_path: Path) -> None:
    conf = app_with(tmp_path, "broker_url = result_backend = 'redis://elsewhere'").conf
    assert (conf.broker_url, conf.result_backend, conf.redbeat_redis_url) == (REDIS, REDIS, REDIS)


def test_what_the_order_does_not_rest_on_may_be_changed(tmp_path: Path) -> None:
    app = app_with(tmp_path, "beat_schedule['age scores']['schedule'] = crontab(minute='7')")
    assert app.conf.beat_schedule["age scores"]["schedule"].minute == {7}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("worker_prefetch_multiplier = 4", "worker_prefetch_multiplier is 4"),
        ("task_acks_late = False", "task_acks_late is False"),
        ("task_annotations = {'*': {'acks_late': False}}", "task_annotations"),
        ("worker_disable_rate_limits = False", "worker_disable_rate_limits is False"),
        ("task_create_missing_queues = True", "task_create_missing_queues is True"),
        ("task_serializer = 'pickle'", "task_serializer is 'pickle'"),
        ("result_serializer = 'yaml'", "result_serializer is 'yaml'"),
        ("accept_content = ['json', 'pickle']", "accept_content is ['json', 'pickle']"),
        ("enable_utc = False", "enable_utc is False"),
        ("broker_transport_options['priority_steps'] = [0, 5]", "priority_steps"),
        ("broker_transport_options = {}", "priority_steps"),
        ("task_queues = [Queue('assignment')]", "task_queues has assignment;"),
        ("task_queues = ['assignment', 'maintenance']", "task_queues"),
        ("task_routes = {}", "task_routes"),
        ("task_routes['assignment.*'] = {'queue': 'maintenance'}", "task_routes"),
        ("del task_routes['generation.publish']", "task_routes"),
    ],
)
def test_a_change_that_breaks_the_order_is_refused_by_name(
    tmp_path: Path, change: str, named: str
) -> None:
    with pytest.raises(UsageError) as caught:
        app_with(tmp_path, change)
    said = str(caught.value)
    assert said.startswith("celeryconfig.py: ")
    assert named in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("task_queues = (", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
        ("raise ValueError('first\\nsecond')", "ValueError: first"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line_with_its_path(
    tmp_path: Path, change: str, named: str
) -> None:
    with pytest.raises(UsageError) as caught:
        app_with(tmp_path, change)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'celeryconfig.py'}: ")
    assert named in said
    assert "\n" not in said


def test_a_file_that_is_not_there_is_refused_with_the_setting_that_names_it(tmp_path: Path) -> None:
    missing = tmp_path / "none.py"
    with pytest.raises(UsageError) as caught:
        create_app(settings(missing))
    assert str(caught.value) == (
        f"ASSIGNMENT_WORKERS_CELERY_CONFIG={str(missing)!r}: there is no such file"
    )


def test_the_file_in_the_working_directory_is_the_one_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "celeryconfig.py").write_text("import no_such_module\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^celeryconfig\.py: .*no_such_module"):
        create_app(Settings.from_environment({"REDIS_URL": REDIS}))


RABBITMQ = "amqp://rabbitmq.example//"
NO_OPTIONS = "broker_transport_options = {}"


def on_rabbitmq(folder: Path, change: str) -> App:
    """The application with RabbitMQ as its broker, and the file with one more line."""
    file = folder / "celeryconfig.py"
    file.write_text(f"{SHIPPED}\n{change}\n", encoding="utf-8")
    given = {
        "REDIS_URL": REDIS,
        "BROKER_URL": RABBITMQ,
        "ASSIGNMENT_WORKERS_CELERY_CONFIG": str(file),
    }
    return create_app(Settings.from_environment(given))


def test_the_file_as_shipped_fits_rabbitmq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_URL", RABBITMQ)
    conf = on_rabbitmq(tmp_path, "").conf
    assert (conf.broker_url, conf.result_backend) == (RABBITMQ, REDIS)
    assert conf.broker_transport_options["confirm_publish"] is True


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("", "broker_transport_options has health_check_interval, priority_steps"),
        (
            f"{NO_OPTIONS}; task_queues = [Queue('assignment'), Queue('maintenance')]",
            "x-queue-type of assignment is None",
        ),
        (
            f"{NO_OPTIONS}; task_queues[0].queue_arguments = REPLICATED",
            "x-single-active-consumer of assignment is None",
        ),
    ],
)
def test_what_rabbitmq_s_line_rests_on_is_refused_by_name(
    tmp_path: Path, change: str, named: str
) -> None:
    with pytest.raises(UsageError) as caught:
        on_rabbitmq(tmp_path, change)
    assert str(caught.value).startswith("celeryconfig.py: ")
    assert named in str(caught.value)


def test_each_lane_has_a_queue_like_the_default_ones_and_its_holds_are_ended(
    tmp_path: Path,
) -> None:
    file = tmp_path / "celeryconfig.py"
    file.write_text(SHIPPED, encoding="utf-8")
    lanes = "outstanding=outstanding_requests"
    given = settings(file).model_copy(update={"lanes": lanes})
    app = create_app(given)
    name = "assignment.outstanding"
    queues = {each.name: each.queue_arguments for each in app.conf.task_queues}
    assert queues.keys() == {"assignment", "maintenance", "heartbeats", name}
    assert queues[name] == queues["assignment"]
    sent = [
        entry.get("options", {}).get("queue")
        for entry in app.conf.beat_schedule.values()
        if entry["task"] == "assignment.expire"
    ]
    assert sent == [None, name]
    assert app.amqp.router.route({"queue": name}, "assignment.expire")["queue"].name == name


def test_a_lanes_queue_in_the_file_is_checked_as_the_default_one_is(tmp_path: Path) -> None:
    file = tmp_path / "celeryconfig.py"
    change = (
        f"{NO_OPTIONS}; task_queues.append(Queue('assignment.outstanding', queue_arguments={{}}))"
    )
    file.write_text(f"{SHIPPED}\n{change}\n", encoding="utf-8")
    given = settings(file).model_copy(
        update={
            "lanes": "outstanding=outstanding_requests",
            "broker_url": "amqp://broker.example//",
        }
    )
    with pytest.raises(UsageError, match=r"x-queue-type of assignment\.outstanding is None"):
        create_app(given)


def test_a_file_that_names_no_queue_of_heartbeats_has_one_all_the_same(tmp_path: Path) -> None:
    """As those of 0.1.0 do."""
    change = "task_queues = task_queues[:2]\ndel task_routes['agent.heartbeats']"
    app = app_with(tmp_path, change)
    queues = {each.name: each.queue_arguments for each in app.conf.task_queues}
    assert queues["heartbeats"] == queues["maintenance"]
    assert queue_of(app, "agent.heartbeats") == "maintenance"
