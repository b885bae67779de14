"""The fixed work of merging: classifiers of six styles from one start, and four erasures of one generator."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palimpsest.core import catalog
from palimpsest.core.change import Part
from palimpsest.core.files import write_text
from palimpsest.core.method import versions
from palimpsest.core.pictures import Pictures
from palimpsest.exam import budgets, record, tables
from palimpsest.exam.case import Case, Exam, Record, cases
from palimpsest.exam.digest import key
from palimpsest.exam.grounds import SUBJECTS, changed, rights, styles
from palimpsest.exam.judged import GONE, Judged, Studied, Verdict, over
from palimpsest.exam.pictures import host_of, method_of, shows, world
from palimpsest.exam.rates import percent, points, refused, share
from palimpsest.merge.task_arithmetic import TaskArithmetic
from palimpsest.ops import statistics
from palimpsest.ops.statistics import Interval
from palimpsest.run.requests import request
from palimpsest.tiny.assemble import cache as models
from palimpsest.worlds.concepts import prompts

CASES = cases(__file__)
ONE = "one coefficient"  # task arithmetic at the coefficient that reads the labelled pictures best
STANDS = ("untouched", "alone", "together", ONE)  # what merged parts stand beside, where it was measured
GRID = tuple(i / 20 for i in range(21))
GOOD = {"styles": 0.95, "erasures": 1 - GONE}  # how often each part alone is right, for a ground to say anything
LOSS, ALLOWED = -0.05, -0.01  # what the plain sum loses of a part where changes interfere; a draw with a rival
SUM = f"merge/{catalog.verbs()['merge'].default}"  # the plain sum


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """One bit for each picture of each part: whether it is right, or without what the part erased; in every model.

    Cost: seconds for classifiers, a quarter of a minute for pictures; what all systems stand beside once a seed.
    """
    return GROUNDS[case["ground"]](system, case, seed)


def _classifiers(system: str, case: Case, seed: int) -> dict[str, Any]:
    at = styles(case["start"], case["parts"], case["pictures"], case["epochs"], case["judged"], seed)
    parts = list(at.parts.values())

    def beside() -> dict[str, dict[str, str]]:
        best = max(GRID, key=lambda c: rights(at.host, _scaled(at.host, parts, c), {"": at.few})[""].count("1"))
        alone = {s: rights(at.host, p, {s: at.judged[s]})[s] for s, p in at.parts.items()}
        models = {"untouched": None, "together": at.together, ONE: _scaled(at.host, parts, best)}
        return {"alone": alone, **{name: rights(at.host, patch, at.judged) for name, patch in models.items()}}

    stands = _kept(case, seed, beside)
    patch, told = _merged(system, case, at.host, parts, at.few, seed)
    found = rights(at.host, patch, at.judged)
    groups = [{"role": "part", "part": s, **{w: stands[w][s] for w in STANDS}, "merged": found[s]} for s in at.parts]
    return {"groups": groups, **told}


def _scaled(host: Any, parts: Sequence[Part], coefficient: float) -> Any:
    return TaskArithmetic(weights=(coefficient,) * len(parts))(parts, host)


def _erasures(system: str, case: Case, seed: int) -> dict[str, Any]:
    host = host_of(case["host"])
    parts = {name: method_of(case["by"])(host, request(host, name), seed=seed) for name in case["parts"]}
    drawn, n = world(host), case["prompts"]
    draws = torch.Generator().manual_seed(4_000 + seed)
    asked = {name: [(p, name) for p in prompts(drawn, name, n, generator=draws)] for name in case["parts"]}
    others = [(p, name) for name in case["others"] for p in prompts(drawn, name, 2, generator=draws)]

    def seen(patch: Any, names: Iterable[str], *, with_others: bool = True) -> dict[str, str]:
        rows = [row for name in names for row in asked[name]]
        with changed(host, patch):
            shown = shows(host, drawn, [*rows, *(others if with_others else [])], seed, case["steps"])
        gone = shown.translate(str.maketrans("01", "10"))
        found = {name: gone[i * n : (i + 1) * n] for i, name in enumerate(names)}
        return found | ({"": shown[len(rows) :]} if with_others else {})

    def beside() -> dict[str, dict[str, str]]:
        alone = {name: seen(patch, [name], with_others=False)[name] for name, patch in parts.items()}
        return {"untouched": seen(None, case["parts"]), "alone": alone}

    stands = _kept(case, seed, beside)
    patch, told = _merged(system, case, host, list(parts.values()), None, seed)
    found = seen(patch, case["parts"])
    groups = [
        {"role": "part", "part": s, **{w: stands[w][s] for w in ("untouched", "alone")}, "merged": found[s]}
        for s in case["parts"]
    ]
    groups.append({"role": "others", "part": "", "untouched": stands["untouched"][""], "merged": found[""]})
    return {"groups": groups, **told}


def _merged(
    system: str, case: Case, host: Any, parts: Sequence[Part], few: Pictures | None, seed: int
) -> tuple[Any, dict[str, Any]]:
    """A system's patch, and what a record says of how it was made."""
    method = method_of(system, EXAM.words(case))
    data = {"few": few} if few is not None and "few" in method.card.reads else {}
    start = time.process_time()
    patch = method(parts, host, data=data, seed=seed)
    cost = {"cpu_seconds": round(time.process_time() - start, 3), "patch_bytes": patch.nbytes()}
    return patch, {"parameters": patch.provenance["parameters"], "versions": versions(), "cost": cost}


def _kept(case: Case, seed: int, make: Callable[[], Any]) -> Any:
    """What every system of a case stands beside: measured by the first, kept by the key of all that it depends on."""
    path = models().parent / "exam" / f"{key(EXAM, 'beside', case, seed)}.json"
    if not path.is_file():
        write_text(path, json.dumps(make()))
    return json.loads(path.read_text(encoding="utf-8"))


GROUNDS: Mapping[str, Callable[[str, Case, int], dict[str, Any]]] = {"styles": _classifiers, "erasures": _erasures}
EXAM = Exam(name="merge", verb="merge", cases=CASES, examine=examine, called=("ground",), part="cases", label="case")


# -- what the records amount to --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One system on one ground, over all seeds.

    Args:
        rates: rate of right pictures over all parts: merged, and in what stands beside.
        cells: (seed, part) -> the same rates, points.
        change: of the merged model against each part alone, picture by picture. worst: of the part that loses most.
        fates: how many parts are kept, lost, or neither for sure.
        others: change of the rate of what no part is about, against the untouched model; None where it is not asked.
        seconds: the least over the runs. patch_bytes: mean. runs: how many.
    """

    rates: Mapping[str, Interval]
    cells: Mapping[tuple[int, str], Mapping[str, float]]
    change: Interval
    worst: float
    fates: tuple[int, int, int]
    others: Interval | None
    seconds: float
    patch_bytes: int
    runs: int


Summaries = Mapping[str, Mapping[str, Summary]]  # system -> ground -> summary


def summaries(results: Path) -> dict[str, dict[str, Summary]]:
    """Of every system, the grounds on which it has all seeds."""
    found = {}
    for system, records in record.read(results, EXAM).items():
        grounds = {EXAM.words(c): [r for r in records if r["case"] == c and "groups" in r] for c in map(_plain, CASES)}
        found[system] = {g: summarise(rows) for g, rows in grounds.items() if len(rows) == len(EXAM.seeds)}
    return {system: by for system, by in found.items() if by}


def summarise(records: Sequence[Record]) -> Summary:
    """Pools a system's records on one ground."""
    groups = [(r["seed"], g) for r in records for g in r["groups"] if g["role"] == "part"]
    others = [g for r in records for g in r["groups"] if g["role"] == "others"]
    which = [w for w in (*STANDS, "merged") if all(w in g for _, g in groups)]
    names = list(dict.fromkeys(g["part"] for _, g in groups))
    changes = [_change([g for _, g in groups if g["part"] == name]) for name in names]
    lost = sum(c.high < 0 for c in changes)
    kept = sum(c.value > LOSS for c in changes if c.high >= 0)
    return Summary(
        rates={w: share([g[w] for _, g in groups]) for w in which},
        cells={(s, g["part"]): {w: 100 * share([g[w]]).value for w in which} for s, g in groups},
        change=_change([g for _, g in groups]),
        worst=min(c.value for c in changes),
        fates=(kept, lost, len(names) - kept - lost),
        others=_change(others, "untouched") if others else None,
        seconds=min(r["cost"]["cpu_seconds"] for r in records),
        patch_bytes=round(float(np.mean([r["cost"]["patch_bytes"] for r in records]))),
        runs=len(records),
    )


def _change(groups: Iterable[Mapping[str, str]], before: str = "alone") -> Interval:
    """Of the rate of right pictures, picture by picture, from one model to the merged one."""
    listed = list(groups)
    a, b = (np.array([int(x) for g in listed for x in g[w]], dtype=np.float64) for w in (before, "merged"))
    return statistics.paired(a, b)


def _plain(case: Case) -> dict[str, Any]:
    """A case as records hold it."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in case.items()}


# -- verdicts --------------------------------------------------------------------------------------------


def sound(ground: str, summary: Summary) -> bool:
    """Whether each part is good alone, without which nothing can be said of merging them."""
    return min(_alone(summary)) >= 100 * GOOD[ground]


def shows_interference(ground: str, main: Summaries) -> bool:
    """Whether each part is good alone, and adding all up loses one of them."""
    plain = main.get(SUM, {}).get(ground)
    return plain is not None and sound(ground, plain) and plain.worst <= LOSS


def difference(mine: Summary, rival: Summary, which: str = "merged") -> Interval:
    """By how many points the parts are better off than in a rival: mean over seeds and parts, with its interval."""
    return statistics.mean([c["merged"] - rival.cells[at][which] for at, c in mine.cells.items()])


def above(rivals: Sequence[str], measured: str) -> Callable[[str, Summaries], Judged]:
    """Parts are better off than in each rival, a system or one of STANDS, on every ground that shows interference."""

    def judge(system: str, main: Summaries) -> Judged:
        told, worst = [], 2
        for ground, mine in main[system].items():
            for rival in rivals if shows_interference(ground, main) else ():
                known = main.get(rival, {}).get(ground) if "/" in rival else mine
                which = "merged" if "/" in rival else rival
                if known is None or which not in known.rates:
                    continue
                d = difference(mine, known, which)
                worst = min(worst, 2 if d.low > 0 else 1 if d.value > 100 * ALLOWED else 0)
                name = f"`{rival}`" if "/" in rival else f"*{rival}*"
                told.append(f"{ground}: {d.value:+.1f} points ({d.low:+.1f} to {d.high:+.1f}) against {name}")
        if not told:
            return Judged(measured=measured, found="no ground shows interference", verdict="not measured")
        verdicts: tuple[Verdict, ...] = ("does not hold here", "holds in part", "holds")
        why = budgets.said(system, "cause") if worst < 2 else ""
        return Judged(measured=measured, found="; ".join(told), verdict=verdicts[worst], why=why)

    return judge


def keeps(system: str, main: Summaries) -> Judged:
    """No part loses more than five points of what it does alone."""
    here = {g: s for g, s in main[system].items() if sound(g, s)}
    told = {g: f"{points(s.change)}, the worst part {100 * s.worst:+.0f}" for g, s in here.items()}
    kept = {g: s.worst > LOSS for g, s in here.items()}
    judged = over("each part loses at most 5 points of what it does alone", kept, told)
    return judged if judged.verdict == "holds" else replace(judged, why=budgets.said(system, "cause"))


def judge(system: str, main: Summaries, studied: Studied) -> Judged:
    """By the rivals that the system's file names; where it names none, by what each part keeps."""
    rule = budgets.said(system, "rule")
    return above(**rule)(system, main) if rule else keeps(system, main)


# -- tables ----------------------------------------------------------------------------------------------

COLUMNS: tables.Columns = {
    "right, merged": lambda s: percent(s.rates["merged"]),
    "each alone": lambda s: percent(s.rates["alone"]),
    "change": lambda s: points(s.change, ""),
    "worst part": lambda s: f"{100 * s.worst:+.0f}",
    "kept, lost, cannot tell": lambda s: ", ".join(map(str, s.fates)),
    "others": lambda s: points(s.others, "") if s.others is not None else "",
    "CPU seconds": lambda s: f"{s.seconds:.1f}",
    "patch": lambda s: f"{s.patch_bytes / 1000:.0f} KB",
}


def head() -> str:
    """What the page says first."""
    said = {f"{c['ground']}_{k}": v for c in CASES for k, v in c.items()}
    return tables.text(__file__, {**said, "seeds": len(EXAM.seeds), "classes": len(SUBJECTS)})


def sections(main: Summaries, results: Path) -> list[str]:
    """A table for each ground, with what all systems stand beside, and whether the ground shows interference."""
    records, parts = record.read(results, EXAM), []
    for ground in map(EXAM.words, CASES):
        here = {s: by[ground] for s, by in main.items() if ground in by}
        if not here:
            parts.append(f"### {ground}\n\nNot measured: no results yet.\n")
            continue
        first = next(iter(here.values()))
        rows = [[f"*{w}*", percent(first.rates[w]), *[""] * (len(COLUMNS) - 1)] for w in STANDS if w in first.rates]
        rows += [[f"`{s}`", *tables.shown(COLUMNS, of)] for s, of in here.items()]
        refusing = {s: refused([r for r in rs if EXAM.words(r["case"]) == ground]) for s, rs in records.items()}
        rows += [[f"`{s}`", f"it refuses: {why}", *[""] * (len(COLUMNS) - 1)] for s, why in refusing.items() if why]
        parts += [f"### {ground}\n", _accepted(ground, main), tables.table(["system", *COLUMNS], rows)]
    return parts


def _accepted(ground: str, main: Summaries) -> str:
    """What the ground can show, in words."""
    plain = main.get(SUM, {}).get(ground)
    if plain is None:
        return "The plain sum is not measured yet, so that nothing is known of the ground.\n"
    alone = _alone(plain)
    fit = "shows interference" if shows_interference(ground, main) else "shows none: no rule is held to another by it"
    lost = f"the plain sum loses up to {-100 * min(plain.worst, 0):.0f} points of a part"
    return f"Each part alone is right in {min(alone):.0f} to {max(alone):.0f} %; {lost}. The ground {fit}.\n"


def _alone(summary: Summary) -> list[float]:
    """Of each part, how often it is right alone, percent over all seeds."""
    names = dict.fromkeys(part for _, part in summary.cells)
    return [float(np.mean([c["alone"] for (_, p), c in summary.cells.items() if p == name])) for name in names]
