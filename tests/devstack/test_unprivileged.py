"""Programs below a folder that only root may enter are run by another account, whatever root may."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from assignment_workers.devstack import postgres

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="root has to give capabilities up, with setpriv (Debian: util-linux)",
)

SERVE = """
import sys
from pathlib import Path
import psycopg
from assignment_workers.devstack import postgres, server
from assignment_workers.runtime.errors import StackFailed
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.devstack.log import Log
programs, directory = map(Path, sys.argv[1:])
postgres.find_programs = lambda: programs
try:
    made = postgres.prepare(directory, fsync=False)
except StackFailed as error:
    sys.exit(str(error))
with Guardian() as guardian:
    child = server.start(made, Log(sys.stderr, colour=False), guardian)
    with psycopg.connect(made.url) as connection:
        print(*connection.execute("SELECT 'served'").fetchone())
    child.stop()
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's programs below a folder of mode 0700 that is root's."""
    private = tmp_path_factory.mktemp("private")
    private.chmod(0o700)
    found = postgres.find_programs()
    package = found.parents[1]
    for each in (package.with_suffix(".libs"), package):
        shutil.copytree(each, private / each.name, symlinks=True)
    return private / found.relative_to(package.parent)


def serve(programs: Path, directory: Path, without: str) -> subprocess.CompletedProcess[str]:
    drop = ["setpriv", f"--bounding-set={without}", "--inh-caps=-all"] if without else []
    command = [sys.executable, "-c", SERVE, str(programs), str(directory)]
    return subprocess.run([*drop, *command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "without", ["", "-setpcap", "-dac_override", "-setuid", "-setgid", "-kill"]
)
def test_a_server_below_a_private_folder_serves(
    programs: Path, tmp_path: Path, without: str
) -> None:
    modes = [stat.S_IMODE(each.stat().st_mode) for each in programs.parents]
    done = serve(programs, tmp_path / "postgres", without)
    assert done.stdout == "served\n", done.stderr
    assert [stat.S_IMODE(each.stat().st_mode) for each in programs.parents] == modes
    assert stat.S_IMODE((tmp_path / "postgres/data").stat().st_mode) == 0o700
    again = serve(programs, tmp_path / "postgres", without)
    assert again.stdout == "served\n", again.stderr


def test_where_root_may_nothing_one_line_says_what_to_do(programs: Path, tmp_path: Path) -> None:
    done = serve(programs, tmp_path / "postgres", "-all")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "start as an ordinary user, set DATABASE_URL, or give the container CAP_SETUID" in line
