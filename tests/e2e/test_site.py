"""The documentation site as `make docs` left it: for everybody, on a phone too, and from nowhere else."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from tests.e2e.browser import needs_chromium
from tests.e2e.dashboard.looking import AXE, VIOLATIONS
from tests.support.root import ROOT

SITE = ROOT / "build" / "docs"
PAGES = (
    *(
        "index",
        "tutorial",
        "gateway",
        "how-to/deploy",
        "how-to/troubleshoot",
        "benchmarks/index",
        "architecture",
    ),
    *("reference/settings", "reference/outcomes", "reference/events", "reference/python"),
)

pytestmark = [
    needs_chromium,
    pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="no site is built: make docs"),
]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 400)])
def test_a_page_has_no_barrier_and_loads_nothing_from_elsewhere(
    browser: Browser, scheme: str, width: int
) -> None:
    if not AXE.is_file():
        pytest.fail("axe-core is not installed: run `make client`", pytrace=False)
    with browser.new_context(
        color_scheme=scheme,  # type: ignore[arg-type]
        viewport={"width": width, "height": 900},
    ) as context:
        page = context.new_page()
        loaded: list[str] = []
        page.on("request", lambda request: loaded.append(request.url))
        for name in PAGES:
            page.goto((SITE / f"{name}.html").as_uri())
            page.evaluate(AXE.read_text())
            found = page.evaluate(VIOLATIONS)
            told = [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found]
            assert told == [], name
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert [each for each in loaded if each.startswith(("http:", "https:"))] == []
