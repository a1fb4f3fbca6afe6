"""One process holds a home, and says so to the next; a home that cannot be written is refused."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from assignment_workers.errors import UsageError
from assignment_workers.runtime.errors import HomeHeld
from assignment_workers.runtime.home import hold, holder, is_running, write_private

HOLD = """
import sys, time
from pathlib import Path
from assignment_workers.runtime.home import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "home"


@pytest.fixture
def other(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the home."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(home)], stdout=subprocess.PIPE) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == b"held\n"
        yield held
        held.kill()


def test_a_second_holder_is_told_who_holds_the_home_and_since_when(
    home: Path, other: subprocess.Popen[bytes]
) -> None:
    named = holder(home)
    assert named is not None
    assert named.pid == other.pid
    with pytest.raises(HomeHeld) as refused, hold(home):
        pass
    told = str(refused.value)
    assert (
        f"process {other.pid} on {socket.gethostname()} since {named.since:%Y-%m-%dT%H:%M}" in told
    )
    assert "\n" not in told
    assert refused.value.exit_code == 1


def test_the_lock_of_a_killed_process_is_taken_over(
    home: Path, other: subprocess.Popen[bytes]
) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert f'"pid":{other.pid}' in (home / "lock").read_text()
    assert holder(home) is None
    with hold(home):
        assert holder(home) is not None


def test_a_home_is_private_to_its_owner_and_kept_out_of_git(home: Path) -> None:
    with hold(home):
        pass
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert (home / ".gitignore").read_text() == "*\n"
    assert holder(home) is None


def test_whoever_asks_who_holds_it_does_not_keep_the_next_holder_out(home: Path) -> None:
    with hold(home):
        pass
    ask = (
        "import sys\nfrom pathlib import Path\nfrom assignment_workers.runtime.home import holder\n"
    )
    ask += "print('asks', flush=True)\nwhile True: holder(Path(sys.argv[1]))"
    with subprocess.Popen([sys.executable, "-c", ask, str(home)], stdout=subprocess.PIPE) as asking:
        assert asking.stdout is not None
        assert asking.stdout.readline() == b"asks\n"
        try:
            for _ in range(200):
                with hold(home):
                    pass
        finally:
            asking.kill()


@pytest.mark.parametrize("place", ["file", "under a file", "proc"])
def test_a_home_that_cannot_be_written_is_named_in_one_line(tmp_path: Path, place: str) -> None:
    file = tmp_path / "file"
    file.write_text("")
    path = {"file": file, "under a file": file / "home", "proc": Path("/proc/home")}[place]
    with pytest.raises(UsageError) as refused, hold(path):
        pass
    told = str(refused.value)
    assert str(path) in told
    assert "ASSIGNMENT_WORKERS_HOME" in told
    assert "\n" not in told


def test_a_directory_with_other_files_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    tmp_path.chmod(0o755)
    with pytest.raises(UsageError, match="not ours"), hold(tmp_path):
        pass
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]


def test_a_private_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("old")
    file.chmod(0o644)
    write_private(file, "new")
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_process_that_ended_and_was_not_reaped_does_not_run() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as ended:
        assert is_running(ended.pid)
        assert ended.stdin is not None
        ended.stdin.close()
        while is_running(ended.pid):
            pass
        assert ended.returncode is None
