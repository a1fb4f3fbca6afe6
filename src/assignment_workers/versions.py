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
    """Return the file name of this release's wheel.

    A caller may append the name of an extra, as in `….whl[embedded]`.
    """
    return f"{PACKAGE.replace('-', '_')}-{own()}-py3-none-any.whl"


def untested(version_of: Callable[[str], str] = metadata.version) -> list[str]:
    """Return a line for each installed package whose version is outside the tested range.

    An installer that ignores the ranges can install such a version. Packages whose classes we
    subclass, or whose private names we use, have an upper bound, so a newer minor version of them
    is listed. `version_of` returns the installed version of a package.
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
