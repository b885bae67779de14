"""The fixed work of unlearning: systems forget on models whose retrain oracles are known; scores are gaps to these."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest.core import catalog
from palimpsest.exam import budgets, record, tables
from palimpsest.exam.case import Case, Exam, Record, cases
from palimpsest.exam.judged import Judged, Studied, over
from palimpsest.exam.material import material, missing, unlearnt
from palimpsest.exam.outcome import CLOSE, COST, COSTS, FORGET, MEASURES, RETAIN, TEST, Outcome, outcome, reading
from palimpsest.exam.rates import interval
from palimpsest.exam.tables import number
from palimpsest.probes.answered import answers, collect, relearnt
from palimpsest.receipt.subjects.classifier import Classifier

CASES = cases(__file__)
CHEAP, NEAR = 1 / 20, 3.0  # of retraining's passes; points of average gap that are comparable with the best
FIELDS = ("name", "concept", "value", "low", "high", "before", "floor", "n")
DETAILS = ("signs", "balanced accuracy", "reached", "budget")


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """Readings of an edited model beside the retrain oracles. Cost: seconds to a minute."""
    at = material(case["task"], case["request"])
    parameters = budgets.parameters(system, EXAM.words(case))
    patch, cost = unlearnt(system, parameters, at.task.train, at.request, at.host, seed)
    with patch.applied(at.host):
        told = answers(at.host, at.parts)
        relearn = {"after": relearnt(at.host, at.parts.forget)} if at.parts.gone else {}
    evidence = collect(at.host, told, at.parts, retrained=at.oracles, untouched=at.untouched, relearn=relearn)
    numbers = [
        {f: getattr(r, f) for f in FIELDS}
        | ({} if r.references is None else {"retrained": list(r.references)})
        | {k: r.detail[k] for k in DETAILS if k in r.detail}
        for r in Classifier.readings(evidence)
        if r.name not in ("confusion", "accuracy of a class")
    ]
    plain = json.dumps(numbers).replace("NaN", "null").replace("-Infinity", "null").replace("Infinity", "null")
    return {
        "parameters": patch.provenance["parameters"],
        "versions": patch.provenance["versions"],
        "cost": {**cost, "of_retraining": round(cost["passes"] / at.task.recipe.epochs, 4)},
        "numbers": json.loads(plain),
        "oracles": list(at.seeds),
    }


EXAM = Exam(
    name="unlearn", verb="unlearn", cases=CASES, examine=examine, called=("task", "kind"), missing=missing, version=2,
    part="cases", label="case",
)  # fmt: skip


# -- what the records amount to --------------------------------------------------------------------------

Outcomes = Mapping[str, Mapping[str, Outcome]]  # system -> case in words -> outcome


def summaries(results: Path) -> dict[str, dict[str, Outcome]]:
    """Of every system that was examined on any case."""
    by = record.read(results, EXAM)
    return {
        system: {EXAM.words(c): outcome(rows) for c in CASES if (rows := [r for r in records if r["case"] == c])}
        for system, records in by.items()
    }


# -- rules: this verb's own, and what the rules of papers are made of ------------------------------------

Rule = Callable[[str, Outcomes, Studied], Judged]


def cases_of(system: str, main: Outcomes, kinds: Sequence[str] = ()) -> dict[str, Outcome]:
    """The cases (of some kinds) that a system was examined on and did not refuse."""
    return {c: o for c, o in main.get(system, {}).items() if o.runs and o.kind in (kinds or (o.kind,))}


def each(
    measured: str, held: Callable[[Outcome], bool], words: Callable[[Outcome], str], kinds: Sequence[str] = ()
) -> Rule:
    """Something holds on every case (of some kinds)."""

    def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
        cases = cases_of(system, main, kinds)
        return over(measured, {c: held(o) for c, o in cases.items()}, {c: words(o) for c, o in cases.items()})

    return judge


def beside(
    other: str, measured: str, held: Callable[[Outcome, Outcome], bool], words: Callable[[Outcome, Outcome], str]
) -> Rule:
    """Something holds on every case between a system and another; words of "" leave a case out."""

    def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
        a, b = cases_of(system, main), cases_of(other, main)
        told = {c: text for c in a if c in b and (text := words(a[c], b[c]))}
        return over(measured, {c: held(a[c], b[c]) for c in told}, told)

    return judge


def first(measured: str, measure: str, *, largest: bool = False, only: Sequence[str] = ()) -> Rule:
    """The smallest (or largest) measure among the systems of papers, or only some, on each case with a rival."""

    def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
        held, words = {}, {}
        papers = [s for s in main if catalog.find(s).card.family != "baseline" and s in (only or (s,))]
        for case in cases_of(system, main):
            reached = {s: main[s][case][measure].value for s in papers if case in main[s] and main[s][case].runs}
            order = sorted(reached, key=lambda s: -reached[s] if largest else reached[s])
            if len(order) > 1:
                held[case], best = order[0] == system, order[0]
                place = f"{order.index(system) + 1} of {len(order)}"
                words[case] = f"{place} ({abs(reached[system]):.2f}; `{best}` {abs(reached[best]):.2f})"
        return over(measured, held, words)

    return judge


def comparable(rivals: str, but: Sequence[str]) -> Rule:
    """An average gap near that of the best rival: all systems but some."""

    def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
        gaps = {s: {c: o["average gap"] for c, o in cases_of(s, main).items()} for s in main}
        held, words = {}, {}
        for case, gap in gaps[system].items():
            known = {s: of[case].value for s, of in gaps.items() if case in of and s not in but}
            if known:
                best = min(known, key=lambda s: known[s])
                held[case] = gap.value <= known[best] + NEAR
                words[case] = f"{interval(gap)} against {known[best]:.1f} of `{best}`"
        return over(f"average gap at most {NEAR:g} points above that of the best {rivals}", held, words)

    return judge


def close(kinds: Sequence[str] = ()) -> Rule:
    """Within the exam's bounds."""
    measured = "forget accuracy within 5 points of retraining's, held-out accuracy at most 3 points below"
    return each(measured, lambda o: o.close, gaps, kinds)


def faster(times: float) -> Rule:
    """Classes within the bounds for at most 1/times of retraining's passes."""
    measured = f"a class is forgotten within the exam's bounds, in at most 1/{times:g} of retraining's passes"
    held = lambda o: o.close and o.share <= 1 / times  # noqa: E731
    return each(measured, held, lambda o: f"{gaps(o)} at {o.share:.3f}", ("class",))


def gaps(o: Outcome) -> str:
    """Forget gap and held-out gap."""
    return f"{o['forget gap'].value:+.1f} and {o['held-out gap'].value:+.1f}"


RULES: Mapping[str, Callable[..., Rule]] = {
    "close": close, "faster": faster, "first": first, "comparable": comparable,
}  # fmt: skip


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """By the rule that the system's file names; by the exam's bounds where it names none."""
    how = {"name": "close", **(budgets.said(system, "rule") or {})}
    return RULES[how.pop("name")](**how)(system, main, studied)


# -- tables ----------------------------------------------------------------------------------------------


COLUMNS: tables.Columns = {n: lambda o, n=n: interval(o[n], number) for n in (*MEASURES, *COSTS)}


def head() -> str:
    """What the page says first."""
    return tables.text(__file__, {"seeds": len(EXAM.seeds), "close": CLOSE, "cost": COST})


def more(main: Outcomes) -> dict[str, dict[str, str]]:
    """What stands beside a claim: the share of retraining that a system takes, by system."""
    shares = {s: [o.share for o in by.values() if o.runs] for s, by in main.items()}
    return {"of retraining": {s: f"{min(x):.3f} to {max(x):.3f}" for s, x in shares.items() if x}}


def sections(main: Outcomes, results: Path) -> list[str]:
    """A table for each case."""
    records = record.read(results, EXAM)
    parts = []
    for case in CASES:
        here = {system: by[EXAM.words(case)] for system, by in main.items() if EXAM.words(case) in by}
        first = next((r for s in here for r in records[s] if r["case"] == case and "numbers" in r), None)
        if here:
            parts += [
                f"### {EXAM.words(case)}\n",
                _oracles(first) if first else "",
                _table(case, here, first),
                _sum(here),
            ]
        else:
            parts.append(f"### {EXAM.words(case)}\n\nNot measured: {missing(case) or 'no results yet'}.\n")
    return [p for p in parts if p]


def _table(case: Case, here: Mapping[str, Outcome], first: Record | None) -> str:
    fronts = front(here)
    rows = [_untouched(first, here)] if first else []
    for system, o in here.items():
        word, why = verdict(o, len(EXAM.seeds))
        if word == "fails" and (tried := budgets.tuned(system, EXAM.words(case))):
            gaps = [tried[part] - goal for part, goal in zip(("forget", "test"), tried["goal"], strict=False)]
            why += f"; where its budget was found the gaps were {gaps[0]:+.1f} and {gaps[1]:+.1f}"
        of = f"{fronts[system]} of {len(EXAM.seeds)}" if system in fronts else ""
        rows.append([f"`{system}`", *tables.shown(COLUMNS, o), of, f"**{word}**", why])
    return tables.table(["system", *COLUMNS, "front", "verdict", "why"], rows)


def front(outcomes: Mapping[str, Outcome]) -> dict[str, int]:
    """In how many seeds a system is on a case's front: no other is as good in forgetting, utility and cost.

    Only runs within the bounds of `close` count: far from retraining nothing is a good trade.
    """
    count = dict.fromkeys(outcomes, 0)
    for seed in range(max((len(o.points) for o in outcomes.values()), default=0)):
        losses = {s: o.points[seed] for s, o in outcomes.items() if seed < len(o.points)}
        losses = {s: x for s, x in losses.items() if x[0] <= CLOSE and x[1] <= COST}
        for system, x in losses.items():
            better = (all(b <= a for a, b in zip(x, y, strict=True)) and y != x for y in losses.values())
            count[system] += not any(better)
    return {system: n for system, n in count.items() if n}


def verdict(o: Outcome, seeds: int) -> tuple[str, str]:
    """Of one system on one case: "holds", "fails" or "refuses", and why."""
    if not o.runs:
        return "refuses", o.refused
    why, forget, test = [], o["forget gap"].value, o["held-out gap"].value
    if abs(forget) > CLOSE:
        why.append(f"forget accuracy {abs(forget):.0f} points {'above' if forget > 0 else 'below'} retraining's")
    if test < -COST:
        why.append(f"held-out accuracy {-test:.0f} points below retraining's")
    if o.overdone:
        why.append(f"overdone in {o.overdone} of {o.runs} runs")
    if o.runs < seeds:
        why.append(f"{o.runs} of {seeds} seeds")
    return ("holds" if o.close else "fails"), "; ".join(why)


def _oracles(first: Record) -> str:
    """What retrained models reach, and what one differs from another."""
    said = [
        f"{part} " + ", ".join(f"{v:.1f}" for v in reading(first, "accuracy", part, "retrained") or ())
        for part in (FORGET, RETAIN, TEST)
    ]
    seeds, every = first["oracles"], len(EXAM.seeds)
    few = "" if len(seeds) >= every else f" Only {len(seeds)} of {every} are trained yet."
    return f"Retrained models (seeds {', '.join(map(str, seeds))}), accuracy in percent: {'; '.join(said)}.{few}\n"


def _untouched(first: Record, here: Mapping[str, Outcome]) -> list[str]:
    forget, test = next(o.before for o in here.values() if o.runs)
    known = {
        "forget gap": forget,
        "held-out gap": test,
        "likelihood ratio": reading(first, "membership", "likelihood ratio", "before"),
        "agreement": reading(first, "agreement with retrained models", FORGET, "before"),
        "divergence": reading(first, "divergence of margins", FORGET, "before"),
        "probe": reading(first, "trace in features", "linear probe", "before"),
    }
    word = "holds" if abs(forget) <= CLOSE and test >= -COST else "fails"
    return ["*untouched*", *(number(known.get(column)) for column in COLUMNS), "", f"*{word}*", ""]


def _sum(here: Mapping[str, Outcome]) -> str:
    """Which systems hold, which of them is cheapest, and which closest."""
    parts = []
    if any(o.runs and abs(o.before[0]) <= CLOSE and o.before[1] >= -COST for o in here.values()):
        parts.append("The untouched model meets the bounds, too: here the average gap and the attacks tell more.\n")
    good = {s: o for s, o in here.items() if o.close}
    if good:
        best, closest = min(good, key=lambda s: good[s].share), min(good, key=lambda s: good[s]["average gap"].value)
        parts.append(
            f"{len(good)} of {len(here)} hold, {sum(o.share <= CHEAP for o in good.values())} of them for at most a "
            f"twentieth of retraining. Cheapest: `{best}`, {good[best].share:.4f} of retraining. Smallest average gap: "
            f"`{closest}`.\n"
        )
    return "\n".join(parts)
