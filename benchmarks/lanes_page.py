"""What is measured of one lane and of two, as tables, beside what the simulation makes of it."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field

from benchmarks.record import Table, quantiles, spread
from benchmarks.simulation import Centre, Costs, simulate

LARGE = 128
"""Requests in the largest turn that is measured: a client sends no more in a message."""
SIZES = ((100, 300.0), (1_000, 300.0), (10_000, 300.0), (100_000, 300.0), (10_000, 20.0))
"""Agents, and seconds from one answer to the next request; the last: a predictive dialer's pace."""


@dataclass
class Closed:
    """All agents ask and finish without pause."""

    waits: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    """Requests answered a second, of each turn; as many finishes."""
    client_call: list[float] = field(default_factory=list)
    """Seconds of the caller's processor for one call and its answer, of each turn."""


@dataclass
class Measured:
    """All of a run."""

    turns: dict[str, list[float]]
    costs: Costs
    one: Closed
    two: Closed


def tables_of(found: Measured, agents: int) -> list[Table]:
    """All that is shown of a run."""
    costs = asdict(found.costs)
    return [
        Table(
            "turns",
            "A turn that answers one request",
            "Without transport, one of each way by turns. `times`: beside the first of that turn.",
            ["", "median ms", "p99 ms", "times", "middle half"],
            rows_of_turns(found.turns),
        ),
        Table(
            "lanes",
            f"{agents} agents ask and finish without pause",
            "Half of them for each dialer queue, through one client, on servers of each one's own,"
            " by turns: one lane, and a lane for each dialer queue. `times`: two beside one in the"
            " same turn, the median of the turns, and where the middle half of them lies. Doctor"
            " and history checker found nothing on either afterwards.",
            ["", "requests/s", "median ms", "p99 ms", "times", "middle half"],
            rows_of_closed(found),
            {"kind": "bars", "y": 4},
        ),
        Table(
            "costs",
            "What the simulation reckons with",
            "Milliseconds: of a message, of a turn and of each request or finish in it, and of the"
            " caller's call.",
            list(costs),
            [[round(each * 1000, 4) for each in costs.values()]],
        ),
        Table(
            "simulated",
            "The same agents, measured and simulated",
            f"The simulation has a core for each of its parts. One lane's limit by it:"
            f" {limit(found.costs):,.0f} requests a second.",
            ["", "measured/s", "simulated/s", "ratio", "median ms", "simulated ms"],
            simulated(found, agents),
        ),
        Table(
            "sizes",
            "Call centres, simulated",
            "At these costs.",
            [
                "agents",
                "between answer and request",
                "lanes",
                "clients",
                "requests/s",
                "together",
                "busiest",
                "median ms",
                "p99 ms",
            ],
            sizes(found.costs),
        ),
    ]


def simulated(measured: Measured, agents: int) -> list[list[object]]:
    """What was measured at full speed, and what the simulation makes of the same costs."""
    rows: list[list[object]] = []
    for name, count, each in (("one lane", 1, measured.one), ("two lanes", 2, measured.two)):
        centre = Centre(agents, lanes=count, cycle=0.0)
        said = simulate(centre, measured.costs, seconds=20.0, warm_up=2.0)
        rate = statistics.median(each.rates)
        median = statistics.median(each.waits)
        rows.append(
            [
                name,
                round(rate),
                round(said.rate),
                round(said.rate / rate, 2),
                round(median * 1000, 1),
                round(said.wait(0.5) * 1000, 1),
            ]
        )
    return rows


def sizes(costs: Costs) -> list[list[object]]:
    """Call centres of several sizes, each with as many client processes as its calls ask for."""
    rows: list[list[object]] = []
    for agents, cycle in SIZES:
        rate = agents / cycle
        clients = max(1, round(rate * 2 * costs.client_call / 0.5 + 0.5))
        for lanes, within in ((1, None), (2, None), (1, 60.0)):
            centre = Centre(agents, lanes, clients, cycle, begins_within=within)
            span = max(60.0, min(300.0, 60_000 / rate)) if within is None else 60.0
            warm = 0.0 if within else min(30.0, cycle)
            said = simulate(centre, costs, seconds=span, warm_up=warm)
            rows.append(
                [
                    f"{agents:,}",
                    f"{cycle:g} s" if within is None else f"all ask within {within:g} s",
                    lanes,
                    clients,
                    round(said.rate, 1),
                    round(said.together, 1),
                    f"{max(said.busy):.1%}",
                    round(said.wait(0.5) * 1000, 1),
                    round(said.wait(0.99) * 1000, 1),
                ]
            )
    return rows


def limit(costs: Costs) -> float:
    """Requests a second, each finished too, at which one lane's sequencer has no time left."""
    claims = (costs.message + costs.claim_turn) / LARGE + costs.claim_each
    finishes = (costs.message + costs.finish_turn) / LARGE + costs.finish_each
    return 1 / (claims + finishes)


def rows_of_turns(found: dict[str, list[float]]) -> list[list[object]]:
    """Milliseconds, and times the first, by turns."""
    first, *_ = found.values()
    return [
        [name, *quantiles(each), *spread([own / one for own, one in zip(each, first, strict=True)])]
        for name, each in found.items()
    ]


def rows_of_closed(found: Measured) -> list[list[object]]:
    """Requests a second with as many finishes, by turns, and times one lane."""
    pairs = zip(found.one.rates, found.two.rates, strict=True)
    ratios = {"one lane": (1.0, ""), "two lanes": spread([two / one for one, two in pairs])}
    return [
        [name, round(statistics.median(each.rates)), *quantiles(each.waits), *ratios[name]]
        for name, each in (("one lane", found.one), ("two lanes", found.two))
    ]
