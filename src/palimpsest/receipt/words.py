"""The receipt in plain words: what a reader who reads nothing else should know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palimpsest.core.reading import Reading
from palimpsest.probes.resurfacing import EDITED, INVERTED, NAMES, NEVER, RELEARNT
from palimpsest.probes.verdict import LEVEL, verdict

GONE = 10.0  # percent: a target counts as gone where the whole interval lies below
ALARM = 5.0  # points by which more pictures must have collapsed to raise the alarm


def headline(readings: Sequence[Reading], targets: Sequence[str]) -> str:
    """One short sentence about all targets, and whether others paid for it."""
    found = [r for r in readings if r.name == "presence" and r.role == "target"]
    names = _names([_quoted(t) for t in targets])
    verb = "are" if len(targets) > 1 else "is"
    if not found:
        return f"{names}: presence was not measured"
    states = {_state(r) for r in found}
    said = f"{names} {verb} {states.pop()}" if len(states) == 1 else f"{names}: some gone, some not"
    others = [r for r in readings if r.name == "presence" and r.role in ("neighbour", "unrelated")]
    lost = any(verdict(r) == "changed" and r.value < (r.before or 0.0) for r in others)
    return f"{said}, and other concepts suffered" if lost else said


def sentences(readings: Sequence[Reading], targets: Sequence[str], cost: dict[str, Any]) -> list[dict[str, str]]:
    """Sentences with their tone: "good", "bad", "unsure" or "plain".

    Args:
        readings: of one audit.
        targets: names of the target concepts.
        cost: of the audit.
    """
    presence = [r for r in readings if r.name == "presence"]
    said = [_target(r) for r in presence if r.role == "target"]
    if not said:
        said.append(
            _say("unsure", f"No judge knows {_names([_quoted(t) for t in targets])}, so presence was not measured.")
        )
    apart = [r for r in presence if r.concept and r.detail.get("seeds apart", 1.0) * len(presence) < LEVEL]
    if apart:
        text = f"Seed sets of the untouched model differ by more than chance for {_names([r.concept for r in apart])}"
        said.append(_say("unsure", text + ": read their noise floor with care."))
    for role, what in (("neighbour", "Close to it"), ("unrelated", "Unrelated")):
        said += _others([r for r in presence if r.role == role], what)
    said += _collapse([r for r in readings if r.name == "collapse"])
    said += _oracle(readings)
    said += [_resurfaced(r) for r in readings if r.name in NAMES]
    said += _weights(readings)
    if cost.get("looks"):
        look, looks = cost["looks"]
        why = "every answer was clear" if look < looks else "some answers stayed unclear to the end"
        said.append(_say("plain", f"The audit stopped at look {look} of {looks}: {why}."))
    return said


def percent(low: float, high: float) -> str:
    """ "1-6" with an en dash."""
    return f"{low:.0f}–{high:.0f}"


def _state(r: Reading) -> str:
    if r.high < GONE or (r.value == 0 and verdict(r) == "changed"):
        return "gone"
    if verdict(r) != "changed":
        if r.value >= GONE:
            return "still there"
        return (
            "hardly there, as before" if (r.before or 0.0) < GONE else "perhaps gone, shown in too few pictures to tell"
        )
    return "weaker, not gone" if r.value < (r.before or 0.0) else "stronger than before"


def _target(r: Reading) -> dict[str, str]:
    state = _state(r)
    text = (
        f"{_quoted(r.concept)} is {state}: {r.value:.0f} % ({percent(r.low, r.high)}) of the pictures that ask for it "
        f"show it, before {r.before or 0:.0f} %."
    )
    instead = r.detail.get("instead") or []
    if instead and state in ("gone", "weaker, not gone"):
        text += " More often seen instead: " + _names([f"{w} (+{p:.0f} points)" for w, p in instead]) + "."
    return _say("good" if state == "gone" else "bad" if verdict(r) == "unchanged" else "unsure", text)


def _others(found: list[Reading], what: str) -> list[dict[str, str]]:
    """Concepts of one role: those that changed one by one, the others together."""
    single = [r for r in found if r.concept]
    by = {v: [r for r in single if verdict(r) == v] for v in ("changed", "unchanged", "cannot tell")}
    said = []
    for r in by["changed"]:
        change = r.detail["change"]
        down = change["value"] < 0
        moved = f"{'lost' if down else 'gained'} {abs(change['value']):.0f} points"
        limits = f"{change['low']:+.0f} to {change['high']:+.0f}".replace("-", "−")
        text = (
            f"{_quoted(r.concept)} {moved} ({limits}): shown in {r.value:.0f} % "
            f"of the pictures that ask for it, before {r.before or 0:.0f} %."
        )
        said.append(_say("bad" if down else "unsure", f"{what}: {text}"))
    if by["unchanged"]:
        names = _names([r.concept for r in by["unchanged"]])
        text = f"{what}: {names} changed by less than two seeds of the untouched model do"
        whole = next((r for r in found if not r.concept and verdict(r) == "unchanged"), None)
        if whole is not None and len(by["unchanged"]) == len(single):
            text += (
                f" (together {whole.value:.0f} % ({percent(whole.low, whole.high)}), before {whole.before or 0:.0f} %)"
            )
        said.append(_say("good", text + "."))
    if by["cannot tell"]:
        names = _names([f"{r.concept} ({r.before or 0:.0f} to {r.value:.0f} %)" for r in by["cannot tell"]])
        said.append(_say("unsure", f"{what}: these pictures are too few to tell for {names}."))
    for r in found:
        if not r.concept and verdict(r) == "changed":
            said.append(
                _say(
                    "bad", f"{what}, taken together: {r.value:.0f} % show what was asked for, before {r.before:.0f} %."
                )
            )
    return said


def _collapse(found: list[Reading]) -> list[dict[str, str]]:
    worse = [r for r in found if r.value - (r.before or 0.0) >= ALARM and verdict(r) == "changed"]
    if not found:
        return []
    if not worse:
        return [_say("good", "No sign of collapse: pictures did not turn into noise, one colour or copies.")]
    where = _names([f"{r.value:.0f} % of the {r.role} pictures (before {r.before or 0:.0f} %)" for r in worse])
    return [_say("bad", f"Over-erasure alarm: {where} are noise, one colour or copies of another.")]


def _oracle(readings: Sequence[Reading]) -> list[dict[str, str]]:
    found = [r for r in readings if r.name == "presence in a model that never saw it"]
    return [
        _say("plain", f"A model that never saw {_quoted(r.concept)} shows it in {r.value:.0f} % of the same pictures.")
        for r in found
    ]


def _resurfaced(r: Reading) -> dict[str, str]:
    """Back: the interval at the end lies above the whole interval at the start."""
    series = {s["name"]: s for s in r.detail["curve"]["series"]}
    spent, mine = r.detail["budget"], series[EDITED]
    of = "other things" if r.name == RELEARNT["benign"] else "it"
    work = f"{r.detail['steps'][-1]} steps of fine-tuning on {spent['pictures']} pictures of {of}"
    if r.name == INVERTED:
        work = f"an attack of {spent['steps']} steps that learns {spent['words']} words"
    back = len(mine["y"]) > 1 and r.low > mine["high"][0]
    text = f"After {work}, {_quoted(r.concept)} is {'back' if back else 'shown'} in {r.value:.0f} % "
    text += f"({percent(r.low, r.high)}) of {r.n} pictures"
    if r.detail["steps"][0] == 0:
        text += f", before that {mine['y'][0]:.0f} %"
    if NEVER in series:
        text += f"; a model that never saw it shows it in {series[NEVER]['y'][-1]:.0f} % after the same"
    return _say("bad" if back else "plain", text + ".")


def _weights(readings: Sequence[Reading]) -> list[dict[str, str]]:
    found = [r for r in readings if r.name == "relative weight change"]
    if not found:
        return []
    r = found[0]
    if not r.n:
        rule = _names(list(r.detail.get("hooks", []))) or "the edit"
        return [_say("plain", f"No weight is changed: {rule} acts while the model samples.")]
    tensors = "1 tensor" if r.n == 1 else f"{r.n} tensors"
    size = r.detail["bytes"]
    kept = f"{size} bytes" if size < 1000 else f"{size / 1e3:.0f} KB" if size < 1e6 else f"{size / 1e6:.1f} MB"
    norm = f"by {r.value:.2g} % of their norm" if r.value else "from zero"
    return [_say("plain", f"The patch changes {tensors} {norm} and takes {kept}.")]


def _quoted(name: str) -> str:
    return f"“{name}”"


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def _say(tone: str, text: str) -> dict[str, str]:
    return {"tone": tone, "text": text}
