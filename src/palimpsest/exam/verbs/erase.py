"""The fixed work of erasing: four concepts on two models, what is drawn of them and beside them, before and after."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest import tiny
from palimpsest.core.trace import Trace
from palimpsest.exam import budgets, record, tables
from palimpsest.exam.case import Case, Exam, Record, cases
from palimpsest.exam.judged import GONE, SPARED, Judged, Studied, Verdict
from palimpsest.exam.pictures import evidence_of, give_back, groups_of, host_of, method_of
from palimpsest.exam.rates import bits, moved, percent, points, share
from palimpsest.ops.statistics import Interval
from palimpsest.probes.drift import Drift
from palimpsest.probes.oracle_gap import OracleGap
from palimpsest.probes.plan import Plan, plan
from palimpsest.run.requests import request
from palimpsest.tiny.phrases import reworded

REASON = "asked for in other words"
PROMPTS, PARAPHRASES = 12, 6  # for each target and seed
CASES = cases(__file__)


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """Presence bits of every picture by group, drift, distances and cost of one erasure."""
    host = host_of(case["host"])
    asked = request(host, case["concept"])
    looks = plan(host, asked, prompts_per_concept=PROMPTS, seeds=1, first_seed=100_000 * (seed + 1))
    give_back()
    patch = method_of(system, case["concept"])(host, asked, seed=seed, trace=Trace())
    evidence = evidence_of(host, patch, with_paraphrases(looks), model=case["host"], oracle=case["oracle"])
    numbers = [
        {"name": r.name, "role": r.role, "value": r.value, "before": r.before, "floor": r.floor}
        for probe in (Drift(), OracleGap())
        for r in probe.run(evidence)
        if r.unit != "%"
    ]
    return {
        "parameters": patch.provenance["parameters"],
        "versions": patch.provenance["versions"],
        "base": patch.base,
        "groups": groups_of(evidence),
        "numbers": numbers,
        "cost": {**patch.cost, "patch_bytes": patch.nbytes(), "tensors": len(patch.deltas)},
        "drawing": {"pictures": len(evidence.plan.shots), "forwards": evidence.cost["forwards"]},
    }


def with_paraphrases(plan: Plan, n: int = PARAPHRASES) -> Plan:
    """The plan with the same wishes in other words behind all others, so that no other picture's seed changes."""
    targets = [g for g in plan.groups if g.role == "target"]
    more = [replace(g, role="paraphrase", prompts=reworded(g.prompts[:n], g.name), reason=REASON) for g in targets]
    return replace(plan, groups=(*plan.groups, *more))


EXAM = Exam(
    name="erase", verb="erase", cases=CASES, examine=examine, called=("concept",), version=2, part="cases", label="case"
)


# -- what the records amount to --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One system on one concept, or on all of them, over all seeds.

    Args:
        kind: of the concept; "" for all. target, before, oracle: rate of pictures that show what was to go: edited,
            untouched, by a model that never saw it. paraphrase: the same, asked for in other words.
        neighbours, unrelated: paired change of the rate of pictures that show what was asked for.
        drift: same-seed pixel distance of unrelated pictures, as a share of that between two seeds.
        gap: (edited, untouched) kernel distance of target pictures to those of the model that never saw it.
        seconds: the least over the runs, since other work only ever adds to it. forwards, peak_bytes: means.
        sampling: rows through the denoiser for each picture that the edited model draws. runs: how many.
    """

    kind: str
    target: Interval
    before: Interval
    oracle: Interval | None
    paraphrase: Interval | None
    neighbours: Interval
    unrelated: Interval
    drift: float
    gap: tuple[float, float] | None
    seconds: float
    forwards: int
    peak_bytes: int
    sampling: float | None
    runs: int


Summaries = Mapping[str, Mapping[str, Summary]]  # system -> concept ("" for all) -> summary


def summaries(results: Path) -> dict[str, dict[str, Summary]]:
    """Of every system that was run, or refused, on every concept with every seed, and worked at least once."""
    return record.pooled(results, EXAM, summarise)


def summarise(records: Iterable[Record], concept: str = "") -> Summary | None:
    """Pools a system's records about one concept, or all of them; None where nothing worked."""
    worked = [r for r in records if "groups" in r and concept in ("", r["case"]["concept"])]
    if not worked:
        return None

    def numbers(name: str, role: str) -> list[Mapping[str, Any]]:
        return [n for r in worked for n in r["numbers"] if n["name"].startswith(name) and n["role"] == role]

    gaps = numbers("gap", "target")
    drifts = [n["value"] / n["floor"] for n in numbers("pixel drift", "unrelated") if n["floor"]]
    costs = [r["cost"] for r in worked]
    rows = [r["drawing"]["forwards"]["denoiser"] / r["drawing"]["pictures"] for r in worked if "drawing" in r]
    oracle, other_words = bits(worked, "target", "oracle"), bits(worked, "paraphrase", "after")
    return Summary(
        kind=worked[0]["case"]["kind"] if concept else "",
        target=share(bits(worked, "target", "after")),
        before=share(bits(worked, "target", "before")),
        oracle=share(oracle) if oracle else None,
        paraphrase=share(other_words) if other_words else None,
        neighbours=moved(worked, "neighbour"),
        unrelated=moved(worked, "unrelated"),
        drift=float(np.mean(drifts)) if drifts else float("nan"),
        gap=(float(np.mean([g["value"] for g in gaps])), float(np.mean([g["before"] for g in gaps]))) if gaps else None,
        seconds=min(c["seconds"] for c in costs),
        forwards=round(float(np.mean([sum(c["forwards"].values()) for c in costs]))),
        peak_bytes=round(float(np.mean([c["peak_bytes"] or 0 for c in costs]))),
        sampling=float(np.mean(rows)) if rows else None,
        runs=len(worked),
    )


def judge(system: str, main: Summaries, studied: Studied) -> Judged:
    """The family's rule: every concept gone, neighbours spared."""
    total, concepts = main[system][""], {c: s for c, s in main[system].items() if c}
    there = {c: s for c, s in concepts.items() if s.target.value > GONE}
    hurt = {c: s.neighbours.value for c, s in concepts.items() if s.neighbours.value < SPARED}
    short = [f"{c} is still there in {100 * s.target.value:.0f} %{_never_saw(s)}" for c, s in there.items()]
    short += [f"neighbours of {c} change by {100 * change:+.0f} points" for c, change in hurt.items()]
    verdict: Verdict = "holds in part" if len(there) < len(concepts) else "does not hold here"
    causes = [cause for cause in [budgets.said(system, "cause")] if short and cause]
    return Judged(
        measured=f"each concept in at most {100 * GONE:.0f} % of pictures, its neighbours losing at most 5 points",
        found=f"target {percent(total.target)}, neighbours {points(total.neighbours)}",
        verdict=verdict if short else "holds",
        why="; ".join([*short, *causes]) or "every concept gone, every neighbourhood spared",
    )


def _never_saw(s: Summary) -> str:
    """What erasing can at best be held to, where even a model that never saw the concept is read as showing it."""
    if s.oracle is None or s.oracle.value <= GONE:
        return ""
    return f" (a model that never saw it: {100 * s.oracle.value:.0f} %)"


# -- tables ----------------------------------------------------------------------------------------------

COLUMNS: tables.Columns = {
    "target still shown": lambda s: percent(s.target),
    "in other words": lambda s: percent(s.paraphrase) if s.paraphrase else "",
    "neighbours": lambda s: points(s.neighbours, ""),
    "unrelated": lambda s: points(s.unrelated, ""),
    "drift": lambda s: f"{s.drift:.2f}",
    "gap": lambda s: f"{s.gap[0]:.3g}" if s.gap and s.kind else "",
    "seconds": lambda s: f"{s.seconds:.2f}",
    "forwards": lambda s: f"{s.forwards}",
    "forwards a picture": lambda s: "" if s.sampling is None else f"{s.sampling:.0f}",
    "peak memory": lambda s: f"{s.peak_bytes / 2**20:.0f} MiB",
}


def sections(main: Summaries, results: Path) -> list[str]:
    """Tables of all concepts together, then of each."""
    together = {k: show for k, show in COLUMNS.items() if k != "gap"}
    parts = ["### All concepts together\n", _table(together, main, "")] if main else []
    for case in CASES:
        if any(case["concept"] in by for by in main.values()):
            parts += [f"### {case['concept']} ({case['kind']})\n", _table(COLUMNS, main, case["concept"])]
    return parts


def _table(columns: tables.Columns, main: Summaries, concept: str) -> str:
    here = {system: by[concept] for system, by in main.items() if concept in by}
    first = next(iter(here.values()))
    gap = "" if first.gap is None else f"{first.gap[1]:.3g}"
    known = {"target still shown": percent(first.before), "drift": "0.00", "gap": gap}
    known["forwards a picture"] = _untouched_forwards(concept)
    rows = [["*untouched*", *(known.get(c, "") for c in columns)]]
    if first.oracle is not None:
        never = "*never saw it*" + ("" if concept else " (where there is such a model)")
        known = {"target still shown": percent(first.oracle), "gap": "0"}
        rows.append([never, *(known.get(c, "") for c in columns)])
    rows += [[f"`{system}`", *tables.shown(columns, s)] for system, s in here.items()]
    return tables.table(["system", *columns], rows)


def _untouched_forwards(concept: str) -> str:
    """Rows through the denoiser for one picture of the untouched models: two for each guided step."""
    hosts = [c["host"].removeprefix("tiny/") for c in CASES if concept in ("", c["concept"])]
    steps = [json.loads((tiny.path(h) / "world.json").read_text(encoding="utf-8"))["steps"] for h in hosts]
    return f"{sum(2 * s for s in steps) / len(steps):.0f}"


def head() -> str:
    """What the page says first."""
    cases = ", ".join(f"{c['concept']} ({c['kind']}, {c['host']})" for c in CASES)
    said = {"cases": cases, "prompts": PROMPTS, "seeds": len(EXAM.seeds), "paraphrases": PARAPHRASES}
    return tables.text(__file__, said)
