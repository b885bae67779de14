"""Whether weights foretell pictures: interference of two erasures' weights, and what each loses in their sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch

from palimpsest.core.change import stored
from palimpsest.exam.agreement import spearman
from palimpsest.exam.case import Case, Exam, Record, Records, cases
from palimpsest.exam.grounds import changed
from palimpsest.exam.pictures import host_of, method_of, shows, world
from palimpsest.exam.rates import points
from palimpsest.merge.task_arithmetic import TaskArithmetic
from palimpsest.ops import statistics
from palimpsest.ops.interference import interference
from palimpsest.ops.statistics import Interval
from palimpsest.run.requests import request
from palimpsest.worlds.concepts import prompts

Pair = Mapping[str, Any]
WEIGHTS = ("cosine", "opposed", "shared")
LOST = ("of each erasure", "of other concepts")
(CASE,) = CASES = cases(__file__)


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """Of every two erasures what their weights say, and bits of pictures of each alone and of the sum.

    The same prompts and seeds are drawn with each; a bit of `alone` and `summed` says that a target is gone, one of
    `spared` (by both erasures, each alone) and `others` (by the sum) that another concept is shown.

    Cost: 140 s of one core a seed.
    """
    host = host_of(case["host"])
    drawn, n = world(host), case["prompts"]
    draws = torch.Generator().manual_seed(5_000 + seed)
    asked = {name: [(p, name) for p in prompts(drawn, name, n, generator=draws)] for name in case["concepts"]}
    others = [(prompts(drawn, name, 1, generator=draws)[0], name) for name in case["others"]]
    parts = {name: method_of(system)(host, request(host, name), seed=seed) for name in case["concepts"]}

    def seen(patch: Any, names: Sequence[str]) -> tuple[str, str]:
        rows = [row for name in names for row in asked[name]]
        with changed(host, patch):
            shown = shows(host, drawn, [*rows, *others], seed, case["steps"])
        return shown[: len(rows)].translate(str.maketrans("01", "10")), shown[len(rows) :]

    alone = {name: seen(patch, [name]) for name, patch in parts.items()}
    weights = interference(list(parts.values()), stored(host))
    found = []
    for (a, b), said in zip(combinations(parts, 2), weights, strict=True):
        summed, left = seen(TaskArithmetic()([parts[a], parts[b]], host), [a, b])
        spared = "".join("1" if x == y == "1" else "0" for x, y in zip(alone[a][1], alone[b][1], strict=True))
        told = {name: round(getattr(said, name), 4) for name in WEIGHTS}
        bits = {"alone": alone[a][0] + alone[b][0], "summed": summed, "spared": spared, "others": left}
        found.append({"pair": [a, b], **told, **bits})
    return {"pairs": found}


def lost(records: Sequence[Record], what: str) -> list[Interval]:
    """Of each pair, over all seeds: the share of pictures that are right with each alone and wrong in the sum, less
    those that are wrong alone and right in the sum."""
    before, after = ("alone", "summed") if what == LOST[0] else ("spared", "others")
    every = [[r["pairs"][i] for r in records] for i in range(len(records[0]["pairs"]))]
    return [statistics.paired(_bits(pairs, after), _bits(pairs, before)) for pairs in every]


def _bits(pairs: Sequence[Pair], which: str) -> list[int]:
    return [int(bit) for pair in pairs for bit in pair[which]]


def foretold(records: Sequence[Record], weight: str, what: str) -> Interval | None:
    """Spearman's correlation over pairs between what their weights say and what their pictures lose; None where one of
    the two does not differ."""
    said = {str(i): pair[weight] for i, pair in enumerate(records[0]["pairs"])}
    return spearman(said, {str(i): x.value for i, x in enumerate(lost(records, what))})


def _all(records: Sequence[Record], what: str) -> str:
    before, after = ("alone", "summed") if what == LOST[0] else ("spared", "others")
    pairs = [pair for r in records for pair in r["pairs"]]
    worst = max(x.value for x in lost(records, what))
    return f"{points(statistics.paired(_bits(pairs, after), _bits(pairs, before)))}, worst pair {100 * worst:+.0f}"


def _cell(weight: str, what: str) -> Callable[[str, Records], str]:
    def show(system: str, by: Records) -> str:
        rho = foretold(by[system], weight, what)
        return "cannot tell" if rho is None else f"{rho.value:+.2f} ({rho.low:+.2f} to {rho.high:+.2f})"

    return show


COLUMNS = {
    **{f"lost {what}": lambda system, by, what=what: _all(by[system], what) for what in LOST},
    **{f"{weight}, {what}": _cell(weight, what) for weight in WEIGHTS for what in LOST},
}
EXAM = Exam(
    name="foretold", verb="merge", cases=CASES, examine=examine, systems=("erase/uce",), with_verb=True,
    columns=COLUMNS,
)  # fmt: skip
