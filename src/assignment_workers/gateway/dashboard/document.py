"""The service levels of a period as one HTML file that contains its style and charts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from assignment_workers.assignment.reports.breakdown import Breakdown, UnansweredPart
from assignment_workers.assignment.reports.report import Report
from assignment_workers.gateway.dashboard.render import HERE, environment


def document(report: Report, shares: Breakdown, unanswered: Sequence[UnansweredPart] = ()) -> str:
    """Return the service report of a period as the text of one HTML file.

    `shares`: the assignments of the period by dialer queue, by team and by part of the period.
    `unanswered`: the requests without an answer, by part of the period.
    """
    return (
        environment()
        .get_template("document.html")
        .render(
            report=report,
            shares=shares,
            unanswered=unanswered,
            style=(HERE / "assets" / "dashboard.css").read_text(encoding="utf-8"),
            version=version("assignment-workers"),
        )
    )
