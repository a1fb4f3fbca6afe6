"""A version outside the tested range is named; what is installed by the lock files is within."""

from __future__ import annotations

from importlib import metadata

import pytest

from assignment_workers.versions import own, untested

BOUNDED = ["kombu", "celery", "redis", "psycopg", "sqlalchemy"]
"""Subclassed, or reached by private names."""


def test_what_the_lock_files_install_was_tested() -> None:
    assert untested() == []


@pytest.mark.parametrize("package", BOUNDED)
@pytest.mark.parametrize("version", ["0.1", "99.0", "99.0rc1"])
def test_a_version_outside_the_range_is_named(package: str, version: str) -> None:
    def version_of(name: str) -> str:
        return version if name == package else metadata.version(name)

    (line,) = untested(version_of)
    assert line.startswith(f"{package} {version} was not tested with assignment-workers {own()}")


@pytest.mark.parametrize("package", [each for each in BOUNDED if each != "redis"])
def test_the_next_minor_version_is_outside(package: str) -> None:
    major, minor, *_ = metadata.version(package).split(".")

    def version_of(name: str) -> str:
        return f"{major}.{int(minor) + 1}.0" if name == package else metadata.version(name)

    (line,) = untested(version_of)
    assert package in line
