"""Many concepts in one erasure: what is gone of them, and what is left of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from palimpsest.exam.case import Case, Exam, Record, Records, cases
from palimpsest.exam.judged import Verdict, higher
from palimpsest.exam.pictures import host_of, patch_of, shows, world
from palimpsest.exam.rates import percent, share, worked
from palimpsest.ops.statistics import Interval
from palimpsest.run.requests import request
from palimpsest.worlds.concepts import prompts

(CASE,) = CASES = cases(__file__)


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """Presence of identities that were all erased in one run, and of others that the method was not told to keep."""
    host = host_of(case["host"])
    faces = world(host)
    held_out = faces.held_out.get("identity", frozenset())
    names = [n for n in faces.vocabulary["identity"] if n not in held_out]
    order = [names[i] for i in torch.randperm(len(names), generator=torch.Generator().manual_seed(77))]
    others, order = order[: case["others"]], order[case["others"] :]
    counts: dict[str, Any] = {}
    for count in case["counts"]:
        targets, keep = order[:count], order[count:]
        patch = patch_of(system, "many", host, request(host, targets, keep=keep), seed)
        draws, bits = torch.Generator().manual_seed(3_000 + seed), {}
        with patch.applied(host):
            for what, asked, n in (("targets", targets, case["pictures"] // count), ("others", others, 1)):
                rows = [(p, name) for name in asked for p in prompts(faces, name, n, generator=draws)]
                bits[what] = shows(host, faces, rows, seed, case["steps"])
        counts[str(count)] = {**bits, "cost": dict(patch.cost)}
    return {"counts": counts}


def better_than(by: Records, system: str, rival: str, count: int) -> tuple[str, Verdict]:
    """Whether the harmonic mean at a number of concepts is above another system's."""
    if not worked(by, system, rival):
        return "", "not measured"
    a, b = (harmonic(*left(by[s], count)) for s in (system, rival))
    return f"H {percent(a)} against {percent(b)}", higher(a, b)


def left(records: Sequence[Record], count: int) -> tuple[Interval, Interval]:
    """Of targets and of others that are still shown."""
    sets = [r["counts"][str(count)] for r in records]
    return share([s["targets"] for s in sets]), share([s["others"] for s in sets])


def harmonic(targets: Interval, others: Interval) -> Interval:
    """Of the shares of targets gone and others kept; its ends take the worst and the best ends of both."""

    def mean(gone: float, kept: float) -> float:
        return 0.0 if gone + kept == 0 else 2 * gone * kept / (gone + kept)

    return Interval(
        mean(1 - targets.value, others.value), mean(1 - targets.high, others.low), mean(1 - targets.low, others.high)
    )


COLUMNS = {
    heading: lambda s, by, n=n, show=show: percent(show(*left(by[s], n)))
    for n in CASE["counts"]
    for heading, show in (
        (f"{n} targets still shown", lambda targets, others: targets),
        (f"of {n}: others shown", lambda targets, others: others),
        (f"of {n}: H", harmonic),
    )
}
SYSTEMS = ("erase/uce", "erase/esd", "erase/mace")
EXAM = Exam(name="many", verb="erase", cases=CASES, examine=examine, systems=SYSTEMS, columns=COLUMNS)
