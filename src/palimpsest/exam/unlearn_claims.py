"""What each paper on unlearning claims, said so that the exam can measure it, and whether it holds.

Every rule reads gaps to retrain oracles over the exam's cases. "In part" means: in some cases, or without the margin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from palimpsest.core import catalog
from palimpsest.exam.unlearn import ELSEWHERE, UnlearnCase
from palimpsest.exam.unlearn_outcomes import COST, Outcome
from palimpsest.ops.statistics import Interval

Verdict = Literal["holds", "holds in part", "does not hold here", "not measured", "baseline"]
Outcomes = Mapping[UnlearnCase, Mapping[str, Outcome]]

NEAR = 3.0  # points of average gap within which a system is comparable with the best
WITHOUT_RETAINED = ("boundary_expanding", "boundary_shrink", "flat", "gradient_ascent", "scar", "upcore")
SLICES = 8  # of S3T
WITHOUT_LABELS = ("laf",)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim's measure, the numbers that were found, and the verdict."""

    measured: str
    found: str
    verdict: Verdict


Rule = Callable[[str, Outcomes], Judged]


def judge(system: str, outcomes: Outcomes, own: Mapping[str, Judged] | None = None) -> Judged:
    """The verdict on a system's claim; systems without a rule of their own are held to the exam's bounds.

    Args:
        own: verdicts from work that fits one system only: poison, regression.
    """
    if own and system in own:
        return own[system]
    if system in ELSEWHERE:
        return Judged(measured=ELSEWHERE[system], found="", verdict="not measured")
    if not any(system in of_case for of_case in outcomes.values()):
        return Judged(measured="", found="no result", verdict="not measured")
    found = RULES.get(system, _close)(system, outcomes)
    if catalog.find(system).card.family == "baseline":
        return Judged(measured=found.measured, found=found.found, verdict="baseline")
    return found


def _cases(system: str, outcomes: Outcomes, kinds: Sequence[str] = ()) -> dict[UnlearnCase, Outcome]:
    return {
        c: o[system] for c, o in outcomes.items() if system in o and o[system].runs and c.kind in (kinds or (c.kind,))
    }


def _name(case: UnlearnCase) -> str:
    return f"{case.task}, {case.kind}"


def _over(measured: str, held: Mapping[UnlearnCase, bool], words: Mapping[UnlearnCase, str]) -> Judged:
    """A claim about each case: all of them, some, none."""
    if not held:
        return Judged(measured=measured, found="no case that it fits was run", verdict="not measured")
    verdict: Verdict = (
        "holds" if all(held.values()) else "holds in part" if any(held.values()) else "does not hold here"
    )
    found = "; ".join(f"{_name(c)}: {words[c]}{'' if held[c] else ' (no)'}" for c in held)
    return Judged(measured=measured, found=found, verdict=verdict)


def _close(system: str, outcomes: Outcomes) -> Judged:
    mine = _cases(system, outcomes)
    return _over(
        "forget accuracy within 5 points of retraining's, held-out accuracy at most 3 points below",
        {c: o.close for c, o in mine.items()},
        {c: f"{_points(o.forget)} and {_points(o.test)}" for c, o in mine.items()},
    )


def _close_on_classes(system: str, outcomes: Outcomes) -> Judged:
    return _close(system, {c: o for c, o in outcomes.items() if c.kind == "class"})


def _faster(times: float) -> Rule:
    def rule(system: str, outcomes: Outcomes) -> Judged:
        mine = _cases(system, outcomes, ("class",))
        return _over(
            f"a class is forgotten within the exam's bounds, in at most 1/{times:g} of retraining's passes",
            {c: o.close and o.share <= 1 / times for c, o in mine.items()},
            {c: f"{_points(o.forget)} and {_points(o.test)} at {o.share:.3f}" for c, o in mine.items()},
        )

    return rule


def _salun(system: str, outcomes: Outcomes) -> Judged:
    mine = _cases(system, outcomes, ("samples",))
    return _over(
        "random samples: average gap at most 0.2 points, or what one retrained model differs from the others",
        {c: o.average.value <= max(0.2, o.floor) for c, o in mine.items()},
        {c: f"{_interval(o.average)} against {o.floor:.1f}" for c, o in mine.items()},
    )


def _best(
    field: Callable[[Outcome], float], of_case: Mapping[str, Outcome], but: Sequence[str] = ()
) -> tuple[str, float]:
    """The smallest of a field among systems that ran, and whose it is."""
    known = {s: field(o) for s, o in of_case.items() if o.runs and s.removeprefix("unlearn/") not in but}
    best = min(known, key=lambda s: known[s])
    return best, known[best]


def _average(o: Outcome) -> float:
    return o.average.value


def _comparable(rivals: str, but: Sequence[str]) -> Rule:
    def rule(system: str, outcomes: Outcomes) -> Judged:
        mine = _cases(system, outcomes)
        best = {c: _best(_average, outcomes[c], but) for c in mine if any(_rivals(outcomes[c], but))}
        return _over(
            f"average gap at most {NEAR:g} points above that of the best {rivals}",
            {c: mine[c].average.value <= best[c][1] + NEAR for c in best},
            {c: f"{_interval(mine[c].average)} against {best[c][1]:.1f} of `{best[c][0]}`" for c in best},
        )

    return rule


def _rivals(of_case: Mapping[str, Outcome], but: Sequence[str]) -> list[str]:
    return [s for s, o in of_case.items() if o.runs and s.removeprefix("unlearn/") not in but]


def _first(what: str, field: Callable[[Outcome], float], among: Sequence[str] = ()) -> Rule:
    """Smallest of a field, among all systems of a paper's own or only some."""

    def rule(system: str, outcomes: Outcomes) -> Judged:
        mine, held, words = _cases(system, outcomes), {}, {}
        for c, o in mine.items():
            others = {
                s: x for s, x in outcomes[c].items()
                if x.runs and catalog.find(s).card.family != "baseline"
                and (not among or s.removeprefix("unlearn/") in among)
            }  # fmt: skip
            order = sorted(others, key=lambda s: field(others[s]))
            if len(order) > 1:
                held[c] = order[0] == system
                words[c] = f"{order.index(system) + 1} of {len(order)} ({abs(field(o)):.2f}; `{order[0]}` "
                words[c] += f"{abs(field(others[order[0]])):.2f})"
        return _over(what, held, words)

    return rule


def _l1_sparse(system: str, outcomes: Outcomes) -> Judged:
    mine = _both(system, "unlearn/finetune", outcomes)
    less = {c: b.forget.value - a.forget.value for c, (a, b) in mine.items()}
    return _over(
        "forget accuracy at least 50 points below fine-tuning's, held-out accuracy at most 3 points below retraining's",
        {c: less[c] >= 50 and mine[c][0].test.value >= -COST for c in mine},
        {c: f"{less[c]:.0f} points below, held-out {_points(a.test)}" for c, (a, _) in mine.items()},
    )


def _prune_first(system: str, outcomes: Outcomes) -> Judged:
    mine = _both(system, "unlearn/finetune", outcomes)
    return _over(
        "average gap below fine-tuning's, intervals apart",
        {c: a.average.high < b.average.low for c, (a, b) in mine.items()},
        {c: f"{_interval(a.average)} against {_interval(b.average)}" for c, (a, b) in mine.items()},
    )


def _upcore(system: str, outcomes: Outcomes) -> Judged:
    mine = _both(system, "unlearn/gradient_ascent", outcomes)
    return _over(
        "with gradient ascent: forget accuracy at most 2 points above that on the whole set, held-out accuracy higher",
        {c: a.forget.value <= b.forget.value + 2 and a.test.value > b.test.value for c, (a, b) in mine.items()},
        {
            c: f"forget {_points(a.forget)} against {_points(b.forget)}, "
            f"held-out {_points(a.test)} against {_points(b.test)}"
            for c, (a, b) in mine.items()
        },
    )


def _collision(system: str, outcomes: Outcomes) -> Judged:
    mine = {c: x for c, x in _both(system, "unlearn/finetune", outcomes).items() if c.kind != "samples"}
    mine = {c: x for c, x in mine.items() if x[0].relearn.value == x[0].relearn.value}
    return _over(
        "held-out accuracy at most 3 points below retraining's, and 1.5 times as many steps as after fine-tuning until "
        "what was forgotten is back",
        {c: a.test.value >= -COST and a.relearn.value >= 1.5 * max(1.0, b.relearn.value) for c, (a, b) in mine.items()},
        {
            c: f"held-out {_points(a.test)}, {a.relearn.value:.0f} steps against {b.relearn.value:.0f}"
            for c, (a, b) in mine.items()
        },
    )


def _s3t(system: str, outcomes: Outcomes) -> Judged:
    many, one = deletions(cyclic=True), deletions(cyclic=False)
    mine = _cases(system, outcomes)
    accurate = _over(
        "more random deletions until no slice is left than with one fixed order of slices, and held-out accuracy at "
        "most 3 points below retraining's where a slice is left",
        {c: many > one and o.test.value >= -COST for c, o in mine.items()},
        {c: f"held-out {_points(o.test)}" for c, o in mine.items()},
    )
    found = f"{many:.1f} deletions against {one:.1f} with {SLICES} slices; "
    refused = [_name(c) for c, o in outcomes.items() if system in o and not o[system].runs]
    if refused:
        found += f"nothing is left in {', '.join(refused)}; "
    verdict: Verdict = (
        "holds" if accurate.verdict == "holds" else "holds in part" if many > one else "does not hold here"
    )
    return Judged(measured=accurate.measured, found=found + accurate.found, verdict=verdict)


def deletions(*, cyclic: bool, slices: int = SLICES, draws: int = 400) -> float:
    """How many random deletions S3T takes until its longest prefix is empty, on average.

    Args:
        cyclic: whether all cyclic orders of the slices were trained, or only one.
    """
    from palimpsest.unlearn.s3t import longest_prefix

    random, total = Random(0), 0
    for _ in range(draws):
        touched: set[int] = set()
        while True:
            total += 1
            touched.add(random.randrange(slices))
            if not longest_prefix(slices, touched) if cyclic else 0 in touched:
                break
    return total / draws


def _both(system: str, other: str, outcomes: Outcomes) -> dict[UnlearnCase, tuple[Outcome, Outcome]]:
    mine, theirs = _cases(system, outcomes), _cases(other, outcomes)
    return {c: (mine[c], theirs[c]) for c in mine if c in theirs}


def _points(x: Interval) -> str:
    return f"{x.value:+.1f}"


def _interval(x: Interval) -> str:
    return f"{x.value:.1f} ({x.low:.1f} to {x.high:.1f})"


RULES: dict[str, Rule] = {
    "unlearn/boundary_expanding": _faster(19),
    "unlearn/boundary_shrink": _faster(17),
    "unlearn/concept_inference": _close_on_classes,
    "unlearn/datamodel_matching": _first(
        "smallest divergence of the forgotten samples' log-odds from retraining's", lambda o: o.divergence.value
    ),
    "unlearn/duck": _first("largest adaptive unlearning score", lambda o: -o.adaptive.value),
    "unlearn/flat": _first(
        "smallest average gap of those that do not train on retained data", _average, WITHOUT_RETAINED
    ),
    "unlearn/gradient_collision": _collision,
    "unlearn/l1_sparse": _l1_sparse,
    "unlearn/laf": _comparable("that reads labels", WITHOUT_LABELS),
    "unlearn/prune_first": _prune_first,
    "unlearn/s3t": _s3t,
    "unlearn/salun": _salun,
    "unlearn/scar": _comparable("that trains on retained data", WITHOUT_RETAINED),
    "unlearn/upcore": _upcore,
}
