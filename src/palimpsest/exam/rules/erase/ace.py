"""ACE claims that editing a picture does not bring an erased concept in."""

from palimpsest.exam.judged import GONE, SPARED, Judged, Studied, lower, not_measured
from palimpsest.exam.pictures import UNTOUCHED
from palimpsest.exam.rates import change, percent, points, rate, worked
from palimpsest.exam.verbs.erase import Summaries

STUDY = "editing"
RIVALS = ("erase/esd", "erase/uce")


def judge(system: str, main: Summaries, studied: Studied) -> Judged:
    """Editing does not bring the concept in, and other edits still work; said beside what ESD and UCE do."""
    measured = "editing brings the concept in in at most 20 % of pictures, other edits losing at most 5 points"
    by = studied.get(STUDY, {})
    if not worked(by, system, UNTOUCHED, *RIVALS):
        return not_measured(measured)
    before, after = rate(by[UNTOUCHED], "target"), rate(by[system], "target")
    theirs = {r.split("/")[1].upper(): rate(by[r], "target") for r in RIVALS}
    other = change(by[UNTOUCHED], by[system], "others")
    whole = after.value <= GONE and other.value >= SPARED
    against = ", ".join(f"{percent(t)} after {rival}" for rival, t in theirs.items())
    why = [] if after.value <= GONE else [f"editing still brings it into {100 * after.value:.0f} %"]
    no_less = [rival for rival, t in theirs.items() if lower(after, t) != "holds"]
    why += [f"not surely less than {' and '.join(no_less)}"] if no_less else ["surely less than after ESD and UCE"]
    return Judged(
        measured=measured,
        found=f"edited pictures that show it: {percent(after)}; {against}; untouched {percent(before)}",
        verdict="holds" if whole else "holds in part" if lower(after, before) == "holds" else "does not hold here",
        why="; ".join([*why, f"other edits {points(other)}"]),
    )
