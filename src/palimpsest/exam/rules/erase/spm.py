"""SPM's point is harm: the concepts go, and neighbours lose no more than after full fine-tuning."""

from dataclasses import replace

from palimpsest.exam.judged import Judged, Studied, Verdict, higher, not_measured
from palimpsest.exam.rates import points
from palimpsest.exam.verbs import erase
from palimpsest.exam.verbs.erase import Summaries

SYSTEM, RIVAL = "erase/spm", "erase/esd"


def judge(system: str, main: Summaries, studied: Studied) -> Judged:
    """The family's rule, and neighbours beside those of ESD."""
    judged, s = erase.judge(system, main, studied), main[system][""]
    measured = f"{judged.measured}, and less than after {RIVAL}"
    if RIVAL not in main:
        return not_measured(measured, f"{RIVAL} has no result")
    theirs = main[RIVAL][""]
    less = s.neighbours.value >= theirs.neighbours.value
    verdict: Verdict = "holds in part" if judged.verdict == "holds" and not less else judged.verdict
    why = f"{judged.why}; neighbours {points(s.neighbours)} against {points(theirs.neighbours)}"
    return replace(judged, measured=measured, verdict=verdict, why=why)


def compared(main: Summaries, studied: Studied) -> list[tuple[str, str, Verdict]]:
    """Neighbours in the main exam."""
    claim = "SPM harms neighbours less than ESD"
    if not {SYSTEM, RIVAL} <= set(main):
        return [(claim, "", "not measured")]
    a, b = (main[s][""].neighbours for s in (SYSTEM, RIVAL))
    return [(claim, f"neighbours {points(a)} against {points(b)}, in the main exam", higher(a, b))]
