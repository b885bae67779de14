"""A classifier's receipt in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from palimpsest.core.reading import Reading
from palimpsest.probes.verdict import verdict

CLOSE = 5.0  # points of accuracy on the forget set from retrained models within which forgetting is right
COST = 3.0  # points of held-out accuracy that forgetting may cost
CHANCE = 0.55  # area under the curve from which on an attack without references is more than chance
NAMED = 6  # classes that a sentence lists by name


def headline(readings: Sequence[Reading], targets: Sequence[str]) -> str:
    """One short sentence: forgotten or not, and whether the rest paid for it."""
    names = ", ".join(f"“{t}”" for t in targets)
    forget, gap, kept = (_one(readings, *k) for k in (_FORGET, _GAP, _KEPT))
    if forget is None:
        return f"{names}: accuracy was not measured"
    if gap is not None:
        near = abs(gap.value) <= CLOSE
        said = "forgotten as by retraining" if near else "forgotten too hard" if gap.value < 0 else "not forgotten"
    else:
        said = "answered otherwise than before" if verdict(forget) == "changed" else "answered as before"
    paid = kept is not None and kept.before is not None and kept.value < kept.before - COST
    return f"{names}: {said}" + (", and other samples suffered" if paid else "")


def sentences(readings: Sequence[Reading], targets: Sequence[str]) -> list[dict[str, str]]:
    """Sentences with their tone: "good", "bad", "unsure" or "plain"."""
    said = _accuracy(readings)
    attacks = [r for r in readings if r.name == "membership"]
    if attacks:
        said.append(_membership(attacks))
    else:
        said.append(_say("unsure", "No held-out samples of the kind were given, so membership was not asked."))
    for r in (r for r in readings if r.name == "trace in features" and r.concept == "linear probe"):
        never = r.references or ()
        beside = f", in retrained models {sum(never) / len(never):.2f}" if never else ""
        text = f"In the features a linear probe still finds the forgotten classes: area {r.value:.2f}, before "
        said.append(_say("plain", text + f"{r.before:.2f}{beside} (0.5 would be no trace)."))
    said += [_relearning(r) for r in readings if r.name == "relearn time"]
    for r in (r for r in readings if r.name == "overdone forgetting"):
        signs = r.detail["signs"]
        text = "It forgets more than retraining would, which itself gives away what was forgotten: " + "; ".join(signs)
        said.append(_say("bad", text + ".") if signs else _say("good", "No sign of forgetting more than retraining."))
    lost = [
        r for r in readings
        if r.name == "accuracy of a class" and r.role != "target"
        and verdict(r) == "changed" and r.value < (r.before or 0)
    ]  # fmt: skip
    if lost:
        lost.sort(key=lambda r: r.value - (r.before or 0))  # the worst first: where not all are named, those are
        names = ", ".join(f"“{r.concept}” ({r.before:.0f} to {r.value:.0f} %)" for r in lost[:NAMED])
        more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        said.append(_say("bad", f"Classes that should have stayed lost accuracy: {names}{more}."))
    return said


_FORGET = ("accuracy", "forget set")
_GAP = ("gap to retrained models", "forget set")
_KEPT = ("accuracy", "held-out, kept classes")


def _accuracy(readings: Sequence[Reading]) -> list[dict[str, str]]:
    forget, gap, kept = (_one(readings, *k) for k in (_FORGET, _GAP, _KEPT))
    said = []
    if forget is not None:
        text = f"Of the samples to forget it gets {forget.value:.0f} % right ({forget.low:.0f}–{forget.high:.0f})"
        text += f", before {forget.before:.0f} %"
        if gap is None:
            said.append(_say("unsure", text + ". No retrained model was given, so nobody can say how many it should."))
        else:
            tone = "good" if abs(gap.value) <= CLOSE else "bad"
            said.append(_say(tone, text + f"; models that never saw them get {forget.value - gap.value:.0f} %."))
    if kept is not None:
        lost = kept.value - (kept.before or 0.0)
        text = f"Of held-out samples of kept classes it gets {kept.value:.0f} % right, before {kept.before:.0f} %"
        if kept.references:
            text += f", retrained models {min(kept.references):.0f} to {max(kept.references):.0f} %"
        said.append(_say("good" if lost >= -COST else "bad", text + "."))
    return said


def _membership(attacks: Sequence[Reading]) -> dict[str, str]:
    worst = max(attacks, key=lambda r: r.value)
    never = worst.references
    text = (
        f"The best of {len(attacks)} membership attacks ({worst.concept}) tells forgotten samples from held-out "
        f"ones of their kind with area {worst.value:.2f} ({worst.low:.2f} to {worst.high:.2f}), before "
        f"{worst.before:.2f}"
    )
    if never:
        text += f", on retrained models {sum(never) / len(never):.2f}"
    bound = max([CHANCE, *(never or ())])
    tone = "good" if worst.value <= bound else "bad" if worst.low > bound else "unsure"
    return _say(tone, text + "; 0.5 is a coin.")


def _relearning(r: Reading) -> dict[str, str]:
    budget, never = r.detail["budget"], r.references
    took = f"{r.value:.0f} steps" if r.detail["reached"] else f"more than {budget} steps"
    text = f"Fine-tuning on the forgotten samples brings them back within {took}"
    if r.detail["reached"] is False:
        text = f"Fine-tuning on the forgotten samples does not bring them back within {budget} steps"
    if never:
        text += f"; a retrained model takes {never[0]:.0f}" if never[0] <= budget else "; nor does it a retrained model"
    fast = bool(never) and r.value < never[0] / 2
    return _say("bad" if fast else "plain", text + ".")


def _one(readings: Sequence[Reading], name: str, concept: str) -> Reading | None:
    return next((r for r in readings if r.name == name and r.concept == concept), None)


def _say(tone: str, text: str) -> dict[str, str]:
    return {"tone": tone, "text": text}
