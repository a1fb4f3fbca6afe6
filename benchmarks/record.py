"""Figures as JSON, as a page and as plots, with the machine they come from."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis

from benchmarks.stage import Servers

PACKAGES = ("celery", "kombu", "sqlalchemy", "psycopg", "redis", "procrastinate", "pgqueuer")


@dataclass
class Table:
    """One table of the page; `plot` says how it is drawn: the columns for x, y and the lines."""

    name: str
    title: str
    says: str
    columns: list[str]
    rows: list[list[Any]]
    plot: dict[str, Any] = field(default_factory=dict)


def environment(at: Servers) -> dict[str, Any]:
    """What the figures were measured on."""
    with psycopg.connect(at.database_url) as connection:
        postgres = (connection.execute("SHOW server_version").fetchone() or ("",))[0]
        fsync = (connection.execute("SHOW fsync").fetchone() or ("",))[0]
    with redis.Redis.from_url(at.redis_url) as client:
        info = client.info("server")
    load = os.getloadavg()
    return {
        "at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "processors": psutil.cpu_count(),
        "processor": _processor(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "postgresql": f"{postgres}, fsync {fsync}",
        "valkey": info.get("valkey_version") or info.get("redis_version"),
        "load_before": round(load[0], 2),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def quantiles(seconds: Sequence[float]) -> list[float]:
    """Median and 99th percentile, in milliseconds."""
    ranked = sorted(seconds)
    worst = ranked[min(len(ranked) - 1, round(len(ranked) * 0.99))]
    return [round(statistics.median(ranked) * 1000, 3), round(worst * 1000, 3)]


def spread(ratios: Sequence[float]) -> tuple[float, str]:
    """The median, and the quarter below and above which a quarter of the turns lie."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return round(middle, 3), f"{low:.2f} to {high:.2f}"


def write(folder: Path, found: dict[str, Any], tables: Sequence[Table], module: str) -> Path:
    """A page, the same as JSON, and a plot for each table that has one; returns the page.

    `module`: what was run. The names are its day's, and of all but `benchmarks` itself its own too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    day = found["at"][:10]
    name = day + module.removeprefix("benchmarks").replace(".", "-")
    data = {"environment": found, "tables": [asdict(table) for table in tables]}
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    parts = [f"# Benchmarks of {day}\n\n{_machine(found, module)}"]
    for table in tables:
        parts.append(f"## {table.title}\n\n{table.says}\n\n{_markdown(table)}")
        if table.plot:
            plot = f"{day}-{table.name}.svg"
            _draw(table, folder / plot)
            parts.append(f"![{table.title}]({plot})")
    page = folder / f"{name}.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def _machine(found: dict[str, Any], module: str) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    return (
        f"{found['processors']} processors ({found['processor']}), {found['memory_gb']} GB,"
        f" {found['system']}, Python {found['python']}, PostgreSQL {found['postgresql']},"
        f" Valkey {found['valkey']}; load {found['load_before']} before the run.\n"
        f"Servers, workers and callers all on this machine. Made by `python -m {module}`.\n\n"
        f"{packages}."
    )


def _markdown(table: Table) -> str:
    lines = [f"| {' | '.join(table.columns)} |"]
    lines.append("|---|" + "---:|" * (len(table.columns) - 1))
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in table.rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        case other:
            return str(other)


def _draw(table: Table, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = table.name
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 3.6))
    if table.plot["kind"] == "bars":
        names = [str(row[0]) for row in table.rows][::-1]
        values = [row[table.plot["y"]] for row in table.rows][::-1]
        axes.barh(names, values, color="#2a6f97")
        axes.set_xlabel(table.columns[table.plot["y"]])
    else:
        x, y, by = table.plot["x"], table.plot["y"], table.plot["by"]
        for name in dict.fromkeys(row[by] for row in table.rows):
            points = [(max(row[x], 1), row[y]) for row in table.rows if row[by] == name]
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set_xscale("log")
        axes.set_yscale(table.plot.get("scale", "linear"))
        axes.set_xlabel(table.columns[x])
        axes.set_ylabel(table.columns[y])
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
