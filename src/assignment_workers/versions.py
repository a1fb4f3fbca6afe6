"""The dependency versions that this package was tested with, from the package's metadata."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

from packaging.requirements import Requirement

PACKAGE = "assignment-workers"


def own() -> str:
    """Return the version of this package."""
    return metadata.version(PACKAGE)


def wheel() -> str:
    """Return the name of this version's file, for an installer to take with an extra after it."""
    return f"{PACKAGE.replace('-', '_')}-{own()}-py3-none-any.whl"


def untested(version_of: Callable[[str], str] = metadata.version) -> list[str]:
    """Describe, one line each, the installed packages whose version is outside the tested range.

    `version_of` returns the installed version of a package. Such versions remain when an installer
    is told to ignore the ranges. A package that is subclassed or used by private names has an upper
    bound, so a newer minor version of that package is listed.
    """
    lines = []
    for text in metadata.requires(PACKAGE) or []:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": "server"}):
            continue
        try:
            found = version_of(wanted.name)
        except metadata.PackageNotFoundError:
            continue  # the import of a missing package fails by itself
        if not wanted.specifier.contains(found, prereleases=True):
            lines.append(
                f"{wanted.name} {found} was not tested with {PACKAGE} {own()}, "
                f"which was with {wanted.specifier}"
            )
    return lines
