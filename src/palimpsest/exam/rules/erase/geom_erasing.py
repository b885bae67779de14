"""Geom-Erasing claims to remove what no prompt mentions."""

from palimpsest.exam.judged import GONE, SPARED, Judged, Studied, lower, not_measured
from palimpsest.exam.pictures import PLAIN
from palimpsest.exam.rates import change, percent, points, rate, worked
from palimpsest.exam.verbs.erase import Summaries

STUDY = "stamps"


def judge(system: str, main: Summaries, studied: Studied) -> Judged:
    """Fewer stamps than after usual fine-tuning on the same pictures, almost none left, the rest as good."""
    measured = "stamps in at most 20 % of pictures, fewer than after usual fine-tuning on the same stamped pictures"
    by = studied.get(STUDY, {})
    if not worked(by, system, PLAIN):
        return not_measured(measured)
    theirs, after = rate(by[PLAIN], "stamped"), rate(by[system], "stamped")
    shown = change(by[PLAIN], by[system], "shown")
    less = lower(after, theirs)
    whole = less == "holds" and after.value <= GONE and shown.value >= SPARED
    why = [] if after.value <= GONE else [f"the stamp is still there in {100 * after.value:.0f} %"]
    why += [] if shown.value >= SPARED else [f"what was asked for is shown {points(shown)} of usual fine-tuning"]
    return Judged(
        measured=measured,
        found=f"stamps in {percent(after)} against {percent(theirs)}; asked for is shown {points(shown)}",
        verdict="holds" if whole else less if less == "does not hold here" else "holds in part",
        why="; ".join(why) or "the stamp got words of its own, and sampling leaves them",
    )
