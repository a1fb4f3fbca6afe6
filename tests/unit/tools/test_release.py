"""The checks of a release, and the parts of the compatibility page."""

from __future__ import annotations

import pytest

from tools import matrix, release


@pytest.mark.parametrize(
    ("changelog", "obstacles"),
    [
        ("## [Unreleased]\n\n## [1.2.3] - 2026-11-28\n\n### Added\n", 0),
        ("## [Unreleased]\n\n### Added\n\n- A thing.\n\n## [1.2.3] - 2026-11-28\n", 1),
        ("## [Unreleased]\n\n## [1.2.3]\n", 1),
        ("## [Unreleased]\n\n## [1.2.30] - 2026-11-28\n", 1),
        ("## [Unreleased]\n\n### Added\n\n- A thing.\n\n## [1.2.2] - 2026-11-28\n", 2),
        ("# Changelog\n", 1),
    ],
)
def test_a_release_needs_its_section_in_the_changelog_and_an_empty_one_above(
    changelog: str, obstacles: int
) -> None:
    assert len(list(release.changelog_obstacles(changelog, "1.2.3"))) == obstacles


def test_both_packages_have_one_version() -> None:
    assert f'"version": "{release.project_version()}"' in (release.JS / "package.json").read_text(
        encoding="utf-8"
    )


def test_the_short_suites_name_tests_that_exist() -> None:
    assert {
        path for part in matrix.PARTS for path in part.tests if not (matrix.ROOT / path).exists()
    } == set()


def test_the_compatibility_page_has_a_row_for_each_part() -> None:
    rows = matrix.stored(matrix.PAGE.read_text(encoding="utf-8"))
    assert list(rows) == [part.name for part in matrix.PARTS]
    assert [line for line in rows.values() if "failed" in line or "error" in line] == []
