"""RECE claims to erase what UCE leaves, and to withstand attacks that bring concepts back after UCE."""

from dataclasses import replace

from palimpsest.exam.judged import SPARED, Judged, Studied, Verdict, lower, not_measured
from palimpsest.exam.rates import percent, points
from palimpsest.exam.studies import attack
from palimpsest.exam.verbs.erase import Summaries

RIVAL = "erase/uce"
WHY = {
    "holds": "the intervals are apart",
    "holds in part": "fewer, but the intervals overlap",
    "does not hold here": f"{RIVAL} leaves no more than it",
}


def judge(system: str, main: Summaries, studied: Studied) -> Judged:
    """Erases more than its rival, over all concepts, and what it costs others."""
    measured = "the target is shown less often than after UCE"
    if RIVAL not in main:
        return not_measured(measured, f"{RIVAL} has no result")
    s, theirs = main[system][""], main[RIVAL][""]
    verdict = lower(s.target, theirs.target)
    judged = Judged(
        measured=measured,
        found=f"target {percent(s.target)} against {percent(theirs.target)}",
        verdict=verdict,
        why=WHY[verdict],
    )
    if s.neighbours.value >= SPARED and s.unrelated.value >= SPARED:
        return judged
    harm = (
        f"neighbours {points(s.neighbours)}, unrelated {points(s.unrelated)}: likely because each round takes "
        "as many directions as a prompt has states, and a text space of 128 dimensions has few to spare"
    )
    return replace(judged, why=f"{judged.why}; {harm}")


def compared(main: Summaries, studied: Studied) -> list[tuple[str, str, Verdict]]:
    """Under the same attack."""
    claim = "RECE withstands attacks that bring concepts back after UCE"
    return [(claim, *attack.less_than(studied.get("attack", {}), "erase/rece", RIVAL))]
