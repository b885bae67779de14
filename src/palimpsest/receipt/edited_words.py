"""What a receipt says of edited pictures: did they move, what stayed, what was harmed, and which failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from palimpsest.core.reading import Reading
from palimpsest.probes.edits import ROW, EditPlan, Edits
from palimpsest.probes.kept import KEPT
from palimpsest.probes.measured import GAIN, OUTSIDE, PERSON, RECONSTRUCTION
from palimpsest.probes.moved import MOVED
from palimpsest.probes.verdict import verdict
from palimpsest.receipt.generator_words import percent

LISTED = 5  # failures that are named
Sentence = dict[str, str]


def headline(readings: Sequence[Reading], plan: EditPlan) -> str:
    """One short sentence about what was asked, by the first judge that knows it."""
    moved = next((r for r in readings if r.name == MOVED), None)
    n = len(plan.names)
    if moved is None:
        return f"{_pictures(n)} edited for {quoted(plan.wanted)}; nobody judged what they show"
    return f"{_count(moved)} of {_pictures(n)} {_so(plan)} after the edit, {_count(moved, before=True)} before"


def sentences(readings: Sequence[Reading], evidence: Edits) -> list[Sentence]:
    """Sentences with their tone: "good", "bad", "unsure" or "plain"."""
    plan = evidence.plan
    said = [_moved(r, plan) for r in readings if r.name == MOVED][:1]
    if not said:
        said = [_tell("unsure", f"No judge knows {quoted(plan.wanted)}: whether the pictures moved was not measured.")]
    said += _failures(evidence)
    said += _kept([r for r in readings if r.name == KEPT], evidence)
    told = {PERSON: _person, OUTSIDE: _outside, RECONSTRUCTION: _rebuilt, GAIN: _gain}
    said += [told[r.name](r) for r in readings if r.name in told]
    if OUTSIDE not in [r.name for r in readings]:
        said.append(_tell("unsure", "Nobody said where the pictures may change, so nothing is said of pixels outside."))
    return [*said, _marked(evidence)]


def quoted(name: str) -> str:
    return f"“{name}”"


def _so(plan: EditPlan) -> str:
    return f"are without {quoted(plan.sign.name)}" if plan.gone else f"show {quoted(plan.sign.name)}"


def _count(r: Reading, *, before: bool = False) -> int:
    return round(((r.before or 0.0) if before else r.value) * r.n / 100)


def _tell(tone: str, text: str) -> Sentence:
    return {"tone": tone, "text": text}


def _pictures(n: int) -> str:
    return f"{n} picture" if n == 1 else f"{n} pictures"


def _moved(r: Reading, plan: EditPlan) -> Sentence:
    text = f"Moved: {r.value:.0f} % ({percent(r.low, r.high)}) {_so(plan)} after the edit, {r.before or 0:.0f} % before"
    up = r.value > (r.before or 0)
    if verdict(r) == "changed":
        return _tell("good" if up else "bad", f"{text}: {'more' if up else 'fewer'} than by chance.")
    return _tell("unsure" if up else "bad", f"{text}: this cannot be told from chance with {_pictures(r.n)}.")


def _failures(evidence: Edits) -> list[Sentence]:
    failed, n = evidence.failures(), len(evidence.plan.names)
    if not failed:
        return []
    some = "; ".join(f"{evidence.plan.names[i]} ({', '.join(why)})" for i, why in list(failed.items())[:LISTED])
    more = f"; and {len(failed) - LISTED} more" if len(failed) > LISTED else ""
    return [_tell("bad", f"{len(failed)} of {_pictures(n)} failed: {some}{more}.")]


def _kept(readings: Sequence[Reading], evidence: Edits) -> list[Sentence]:
    """What else the first judge reads: what changed by more than rebuilding changes it, what did not, what is open."""
    first = [r for r in readings if r.evaluator == readings[0].evaluator]
    if not first:
        text = "No judge reads anything beside what was asked, so nothing is said of other attributes."
        return [_tell("unsure", text)] if evidence.knowing() else []
    floor = "in the rebuilt pictures" if evidence.has("rebuilt", *evidence.knowing()[:1], "present") else "before"
    said = [
        _tell(
            "bad" if r.value < (r.before or 0) else "good",
            f"Kept: {r.concept} is read as before in {r.value:.0f} % ({percent(r.low, r.high)}) of the pictures; "
            f"{floor} in {r.before or 0:.0f} %.",
        )
        for r in first
        if verdict(r) == "changed"
    ]
    for due, tone, text in (
        ("unchanged", "good", "as often as {floor}"),
        ("cannot tell", "unsure", "too few pictures to say that this is as often as {floor}"),
    ):
        mine = [r for r in first if verdict(r) == due]
        if mine:
            rates = _all([f"{r.concept} {r.value:.0f} %" for r in mine])
            verb = "is" if len(mine) == 1 else "are"
            said.append(_tell(tone, f"Kept: read as before {verb} {rates}; {text.format(floor=floor)}."))
    return said


def _person(r: Reading) -> Sentence:
    text = f"Person: the cosine with the person before is {r.value:.3f} ({r.low:.3f} to {r.high:.3f})"
    if r.before is not None:
        text += f"; rebuilding alone leaves {r.before:.3f}"
    text += f"; with the person of another picture it is {r.detail['other']:.3f}."
    lost = int(r.detail["lost"])
    return _tell("bad" if lost else "plain", f"{text} In {_pictures(lost)} the person is lost." if lost else text)


def _outside(r: Reading) -> Sentence:
    share = f"the region that may differ is {100 * r.detail['region']:.0f} % of a picture"
    if r.detail["equal"] == r.n:
        return _tell("good", f"Outside: every pixel of {_pictures(r.n)} is what it was, bit for bit; {share}.")
    text = (
        f"Outside: {r.detail['equal']} of {_pictures(r.n)} hold every pixel, bit for bit; on average pixels differ by "
        f"{r.value:.2f} of 255 grey levels, the worst picture has {r.detail['worst dB']:.1f} dB; {share}."
    )
    return _tell("good" if r.value < 1 else "bad", text)


def _rebuilt(r: Reading) -> Sentence:
    worst = r.detail["worst"]
    text = f"Reconstruction, with nothing asked: median {r.value:.1f} dB, worst {worst:.1f} dB. Nothing here is finer."
    return _tell("bad" if worst < 20 else "plain", text)


def _gain(r: Reading) -> Sentence:
    text = (
        f"Against the truth: the edits are {r.value:+.1f} dB ({r.low:+.1f} to {r.high:+.1f}) nearer to it than the "
        f"pictures before; {r.detail['harmed']} of {_pictures(r.n)} are further away."
    ).replace("-", "−")
    return _tell("good" if r.low > 0 else "bad" if r.high < 0 else "unsure", text)


def _marked(evidence: Edits) -> Sentence:
    n, marked = len(evidence.plan.names), int(evidence(ROW, "marked").sum())
    text = f"{marked} of {n} files say that a model made a part of them"
    if evidence.plan.marked is False:
        return _tell("unsure", f"{text}: they were written with --no-mark.")
    return _tell("plain" if marked == n else "unsure", f"{text} (DigitalSourceType).")


def _all(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def reasons(evidence: Edits) -> Mapping[int, str]:
    """What stands beside a picture on the page: why it failed, else its numbers."""
    failed, found = evidence.failures(), {}
    for i in range(len(evidence.plan.names)):
        said = list(failed.get(i, ()))
        for what, text in (("gain", "{:+.1f} dB nearer to the truth"), ("reconstruction", "rebuilt with {:.1f} dB")):
            if not said and evidence.has(ROW, what):
                said.append(text.format(float(evidence(ROW, what)[i])))
        found[i] = ", ".join([*said, *evidence.plan.flags[i : i + 1]]).strip(", ")
    return found
