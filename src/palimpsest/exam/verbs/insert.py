"""The fixed work of inserting: three concepts, each taught to a model that never saw it, beside one that always did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.core.trace import Trace
from palimpsest.exam import record, tables
from palimpsest.exam.case import Case, Exam, Record, cases
from palimpsest.exam.judged import SPARED, Judged, Studied, Verdict
from palimpsest.exam.pictures import evidence_of, give_back, groups_of, host_of, method_of
from palimpsest.exam.rates import bits, moved, percent, points, share
from palimpsest.ops.statistics import Interval
from palimpsest.probes.class_drift import TAKEN_OVER
from palimpsest.probes.evaluators import judges_for
from palimpsest.probes.likeness import LIKENESS
from palimpsest.probes.obedience import OBEDIENCE, named
from palimpsest.probes.plan import plan
from palimpsest.receipt.subjects.newcomer import Newcomer
from palimpsest.run.inserting import introduce

PROMPTS, REFERENCES = 12, 4  # for each seed
LEARNED = 0.85  # at least this share of the pictures that ask for a newcomer shows it
CASES = cases(__file__)


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """Bits of every picture by group, of the other words that prompts name, and what else a receipt would say."""
    host = host_of(case["host"])
    of = introduce(host, "<v>", f"world:{case['concept']}", like=case["like"], n=REFERENCES, seed=seed)
    looks = plan(
        host, of.request, prompts_per_concept=PROMPTS, seeds=1, first_seed=100_000 * (seed + 1), newcomers=of.newcomers
    )
    give_back()
    method = method_of(system, case["concept"])
    patch = method(host, of.request, data={"references": of.references}, seed=seed, trace=Trace())
    subject = Newcomer(plan=looks, judges=judges_for(host), references=of.references)
    evidence = subject.beside(evidence_of(host, patch, looks, model=case["host"], oracle=case["oracle"]), Trace())
    numbers = [
        {"name": r.name, "value": r.value, "before": r.before, "detail": dict(r.detail)}
        for r in Newcomer.readings(evidence)
        if r.name in (LIKENESS, TAKEN_OVER, OBEDIENCE)
    ]
    (judge,) = evidence.evaluators
    words = [pair for pairs in named(evidence, judge, 0).values() for pair in pairs]
    obeyed = {w: "".join(str(int(evidence(w, judge, "present")[p])) for p in words) for w in ("before", "after")}
    return {
        "parameters": patch.provenance["parameters"],
        "versions": patch.provenance["versions"],
        "base": patch.base,
        "groups": [*groups_of(evidence), {"role": "other words", "concept": "", "judge": judge, **obeyed}],
        "numbers": numbers,
        "cost": {**patch.cost, "patch_bytes": patch.nbytes(), "tensors": len(patch.deltas)},
    }


EXAM = Exam(name="insert", verb="insert", cases=CASES, examine=examine, called=("concept",), part="cases", label="case")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One system on one concept, or on all of them, over all seeds.

    Args:
        shown, oracle: rate of pictures that show the newcomer: taught, and by a model that always knew it.
        other_words, neighbours, unrelated: paired changes of the rate of what was asked for.
        taken_over: mean rate of pictures of the class that show the newcomer, where a judge can say so.
        likeness: (taught, of the references among themselves, of neighbours), means.
        seconds: the least over the runs. patch_bytes: mean. runs: how many.
    """

    shown: Interval
    oracle: Interval
    other_words: Interval
    neighbours: Interval
    unrelated: Interval
    taken_over: float
    likeness: tuple[float, float, float]
    seconds: float
    patch_bytes: int
    runs: int


Summaries = Mapping[str, Mapping[str, Summary]]  # system -> concept ("" for all) -> summary


def summaries(results: Path) -> dict[str, dict[str, Summary]]:
    """Of every system that was run on every concept with every seed."""
    return record.pooled(results, EXAM, summarise)


def summarise(records: Iterable[Record], concept: str = "") -> Summary | None:
    """Pools a system's records about one concept, or all of them; None where nothing worked."""
    worked = [r for r in records if "groups" in r and concept in ("", r["case"]["concept"])]
    if not worked:
        return None
    numbers = [n for r in worked for n in r["numbers"]]
    like = [(n["value"], n["detail"]["same"], n["detail"]["others"]) for n in numbers if n["name"] == LIKENESS]
    taught, same, others = np.mean(like, axis=0)
    taken = [n["value"] for n in numbers if n["name"] == TAKEN_OVER]
    return Summary(
        shown=share(bits(worked, "target", "after")),
        oracle=share(bits(worked, "target", "oracle")),
        other_words=moved(worked, "other words"),
        neighbours=moved(worked, "neighbour"),
        unrelated=moved(worked, "unrelated"),
        taken_over=float(np.mean(taken)) if taken else float("nan"),
        likeness=(float(taught), float(same), float(others)),
        seconds=min(r["cost"]["seconds"] for r in worked),
        patch_bytes=round(float(np.mean([r["cost"]["patch_bytes"] for r in worked]))),
        runs=len(worked),
    )


def judge(system: str, main: Summaries, studied: Studied) -> Judged:
    """The family's rule: every concept learned, neighbours and other words spared."""
    total, concepts = main[system][""], {c: s for c, s in main[system].items() if c}
    missed = {c: s for c, s in concepts.items() if s.shown.value < LEARNED}
    short = [f"{c} is drawn in {100 * s.shown.value:.0f} %" for c, s in missed.items()]
    for what, of in (("neighbours", "neighbours"), ("other words", "other_words")):
        hurt = {c: getattr(s, of).value for c, s in concepts.items() if getattr(s, of).value < SPARED}
        short += [f"{what} beside {c} change by {100 * change:+.0f} points" for c, change in hurt.items()]
    verdict: Verdict = "holds in part" if len(missed) < len(concepts) else "does not hold here"
    return Judged(
        measured=f"each concept in at least {100 * LEARNED:.0f} % of pictures, neighbours and other words losing at "
        "most 5 points",
        found=f"newcomer {percent(total.shown)}, neighbours {points(total.neighbours)}",
        verdict=verdict if short else "holds",
        why="; ".join(short) or "every concept learned, all else spared",
    )


COLUMNS: tables.Columns = {
    "newcomer shown": lambda s: percent(s.shown),
    "likeness": lambda s: "{:.2f} ({:.2f}, {:.2f})".format(*s.likeness),
    "other words": lambda s: points(s.other_words, ""),
    "neighbours": lambda s: points(s.neighbours, ""),
    "unrelated": lambda s: points(s.unrelated, ""),
    "class shows it": lambda s: f"{s.taken_over:.1f} %",
    "seconds": lambda s: f"{s.seconds:.0f}",
    "patch": lambda s: f"{s.patch_bytes / 1000:.0f} KB",
}


def sections(main: Summaries, results: Path) -> list[str]:
    """Tables of all concepts together, then of each, with what a model that always knew it shows."""
    if not main:
        return ["No run of this exam is on record yet.\n"]
    parts = []
    for concept, called in (("", "All concepts together"), *((c["concept"], c["concept"]) for c in CASES)):
        of = {system: by[concept] for system, by in main.items() if concept in by}
        knew = percent(next(iter(of.values())).oracle)
        rows = [["*always knew it*", knew, *[""] * (len(COLUMNS) - 1)]]
        rows += [[f"`{system}`", *tables.shown(COLUMNS, s)] for system, s in of.items()]
        parts += [f"### {called}\n", tables.table(["system", *COLUMNS], rows)]
    return parts


def head() -> str:
    """What the page says first."""
    told = ", ".join(f"{c['concept']} ({c['kind']}, {c['host']})" for c in CASES)
    return tables.text(
        __file__, {"cases": told, "prompts": PROMPTS, "seeds": len(EXAM.seeds), "references": REFERENCES}
    )
