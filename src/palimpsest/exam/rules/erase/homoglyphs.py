"""Homoglyph unlearning claims that letters that look alike are read alike."""

from palimpsest.exam.judged import SPARED, Judged, Studied, lower, not_measured
from palimpsest.exam.pictures import UNTOUCHED
from palimpsest.exam.rates import change, percent, points, rate, worked
from palimpsest.exam.verbs.erase import Summaries

STUDY = "letters"


def judge(system: str, main: Summaries, studied: Studied) -> Judged:
    """Swapped letters no longer change what is drawn, and plain prompts stay as they were."""
    measured = "with a swapped letter the model draws what was asked for again, plain prompts losing at most 5 points"
    by = studied.get(STUDY, {})
    if not worked(by, system, UNTOUCHED):
        return not_measured(measured)
    before, after = by[UNTOUCHED], by[system]
    was, now, new = rate(before, "read"), rate(after, "read"), rate(after, "new")
    plain, still = change(before, after, "plain"), rate(before, "plain")
    better = lower(was, now) == "holds"
    # As robust as the model is to prompts without any swap, up to five points.
    robust = min(now.value, new.value) >= still.value + SPARED
    gain = (
        f"in words of the training {percent(now)} of pictures show it, {percent(was)} before; new words {percent(new)}"
    )
    short = [("words of the training", now), ("words that it never held", new)] if not robust else []
    reasons = [f"{what} reach {100 * share.value:.0f} % only" for what, share in short]
    reasons += [f"plain prompts lose {-100 * plain.value:.0f} points"] if plain.value < SPARED else []
    if was.value > 0.8:
        reasons = ["the swapped letter hardly changes what the untouched model draws"]
    return Judged(
        measured=measured,
        found=f"{gain}; plain {points(plain)}",
        verdict="holds"
        if better and robust and plain.value >= SPARED
        else "holds in part"
        if better
        else "does not hold here",
        why="; ".join(reasons) or "swapped letters are read as their doubles, also in words that training never held",
    )
