"""S3T claims that cyclic orders of slices bear more deletions than one order."""

from dataclasses import replace
from random import Random

from palimpsest.exam.judged import Judged, Studied, over
from palimpsest.exam.outcome import COST
from palimpsest.exam.verbs.unlearn import Outcomes, cases_of

SLICES = 8


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """Deletions until nothing is left, and accuracy where a slice is."""
    many, one = deletions(cyclic=True), deletions(cyclic=False)
    cases = cases_of(system, main)
    accurate = over(
        "more random deletions until no slice is left than with one fixed order of slices, and held-out accuracy at "
        "most 3 points below retraining's where a slice is left",
        {c: many > one and o["held-out gap"].value >= -COST for c, o in cases.items()},
        {c: f"held-out {o['held-out gap'].value:+.1f}" for c, o in cases.items()},
    )
    counts = f"{many:.1f} deletions against {one:.1f} with {SLICES} slices; "
    if nothing := [c for c, o in main[system].items() if not o.runs]:
        counts += f"nothing is left in {', '.join(nothing)}; "
    short = "holds in part" if many > one else "does not hold here"
    return replace(accurate, found=counts + accurate.found, verdict="holds" if accurate.verdict == "holds" else short)


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
