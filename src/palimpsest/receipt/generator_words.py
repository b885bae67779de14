"""A generator's receipt in plain words: what a reader who reads nothing else should know."""

from __future__ import annotations

from collections.abc import Sequence

from palimpsest.core.reading import Reading, Series
from palimpsest.probes.groups import LISTED
from palimpsest.probes.judging import AGREEMENT, IMAGINED, MISSED
from palimpsest.probes.oracle_gap import NEVER as NEVER_SAW
from palimpsest.probes.plan import Plan
from palimpsest.probes.reference import FRECHET
from palimpsest.probes.resurfacing import EDITED, INVERTED, NAMES, NEVER, RELEARNT
from palimpsest.probes.verdict import LEVEL, verdict

GONE = 10.0  # percent: a target counts as gone where the whole interval lies below
ALARM = 5.0  # points by which more pictures must have collapsed to raise the alarm
SHOWN = 8  # pictures that a sentence names, at most
BROKEN = 50.0  # percent of a role's pictures that are none before the edit already, from which nothing can be read


def headline(readings: Sequence[Reading], targets: Sequence[str], plan: Plan) -> str:
    """One short sentence about all targets, and whether others paid for it; by the first judge, if others agree."""
    judged = [r for r in readings if r.name == "presence" and r.role == "target"]
    names = _names([_quoted(t) for t in targets])
    verb = "are" if len(targets) > 1 else "is"
    if not judged:
        return f"{names}: presence was not measured"
    found = _first(judged)
    by_target = {r.concept: {_state(o, plan.aim) for o in judged if o.concept == r.concept} for r in found}
    if any(len(states) > 1 for states in by_target.values()):
        return f"{names}: the judges do not agree"
    states = {_state(r, plan.aim) for r in found}
    mixed = "some gone, some not" if plan.aim == "away" else "some learned, some not"
    said = f"{names} {verb} {states.pop()}" if len(states) == 1 else f"{names}: {mixed}"
    others = _first([r for r in readings if r.name == "presence" and r.role in ("neighbour", "unrelated")])
    lost = any(verdict(r) == "changed" and r.value < (r.before or 0.0) for r in others)
    return f"{said}, and other concepts suffered" if lost else said


def sentences(readings: Sequence[Reading], targets: Sequence[str], plan: Plan) -> list[dict[str, str]]:
    """Sentences with their tone: "good", "bad", "unsure" or "plain".

    Args:
        readings: of one audit.
        targets: names of the target concepts.
        plan: of the audit: which way presence was meant to go, and when it stopped.

    Where several judges read the pictures, the first one is told in full, of the others what they say of the targets.
    """
    judged = [r for r in readings if r.name == "presence"]
    presence = _first(judged)
    collapse = [r for r in readings if r.name == "collapse"]
    said = _unreadable(collapse) + [_target(r, plan.aim) for r in presence if r.role == "target"]
    if not any(r.role == "target" for r in presence):
        said.append(
            _say("unsure", f"No judge knows {_names([_quoted(t) for t in targets])}, so presence was not measured.")
        )
    said += [_target(r, plan.aim, by=True) for r in judged if r.role == "target" and r not in presence]
    return said + _beside(readings, presence, collapse, plan)


def beside_targets(readings: Sequence[Reading], plan: Plan) -> list[dict[str, str]]:
    """The same without what is said of the targets' presence: of readings that have none."""
    collapse = [r for r in readings if r.name == "collapse"]
    presence = _first([r for r in readings if r.name == "presence"])
    return _unreadable(collapse) + _beside(readings, presence, collapse, plan)


def _beside(
    readings: Sequence[Reading], presence: list[Reading], collapse: list[Reading], plan: Plan
) -> list[dict[str, str]]:
    judged = [r for r in readings if r.name == "presence"]
    said: list[dict[str, str]] = []
    said += _differing([r for r in readings if r.name == AGREEMENT and r.role == "target"])
    said += _itself(readings, judged)
    apart = [r for r in presence if r.concept and r.detail.get("seeds apart", 1.0) * len(presence) < LEVEL]
    if apart:
        text = f"Seed sets of the untouched model differ by more than chance for {_names([r.concept for r in apart])}"
        said.append(_say("unsure", text + ": read their noise floor with care."))
    for role, what in (("neighbour", "Close to it"), ("unrelated", "Unrelated")):
        said += _others([r for r in presence if r.role == role], what)
    said += [_listed(r) for r in presence if r.role == LISTED]
    said += _collapse(collapse)
    said += _few(readings)
    said += _oracle(readings)
    said += [_resurfaced(r) for r in readings if r.name in NAMES]
    said += _weights(readings)
    if plan.looks > 1:
        why = "every answer was clear" if plan.look < plan.looks else "some answers stayed unclear to the end"
        said.append(_say("plain", f"The audit stopped at look {plan.look} of {plan.looks}: {why}."))
    return said


def percent(low: float, high: float) -> str:
    """ "1-6" with an en dash."""
    return f"{low:.0f}–{high:.0f}"


def _state(r: Reading, aim: str) -> str:
    if aim == "in":
        return _learned(r)
    if r.high < GONE or (r.value == 0 and verdict(r) == "changed"):
        return "gone"
    if verdict(r) != "changed":
        if r.value >= GONE:
            return "still there"
        return (
            "hardly there, as before" if (r.before or 0.0) < GONE else "perhaps gone, shown in too few pictures to tell"
        )
    return "weaker, not gone" if r.value < (r.before or 0.0) else "stronger than before"


def _learned(r: Reading) -> str:
    """The state of a target that was to be taught."""
    if verdict(r) == "changed":
        return "learned" if r.value > (r.before or 0.0) else "shown less often than before"
    if (r.before or 0.0) >= GONE:
        return "shown as before"
    return "not learned" if r.high < GONE or verdict(r) == "unchanged" else "perhaps learned, too few pictures to tell"


def _first(presence: Sequence[Reading]) -> list[Reading]:
    """Of each concept, the reading of the first judge that knows it."""
    found: dict[tuple[str, str], Reading] = {}
    for r in presence:
        found.setdefault((r.role, r.concept), r)
    return list(found.values())


def _differing(found: Sequence[Reading]) -> list[dict[str, str]]:
    """What two judges do not agree on, with the pictures."""
    said = []
    for r in found:
        pictures = r.detail["differ"]
        if not pictures or r.evaluator is None:
            continue
        some = ", ".join(pictures[:SHOWN]) + (" and others" if len(pictures) > SHOWN else "")
        agreed = "" if r.detail["kappa"] is None else f" (kappa {r.detail['kappa']:.2f})"
        one = "1 picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
        text = f"{_upper(r.evaluator.name)} and {r.detail['with']} differ on {_quoted(r.concept)} in {one}"
        said.append(_say("unsure", f"{text} of {r.n}{agreed}: {some}."))
    return said


def _itself(readings: Sequence[Reading], presence: Sequence[Reading]) -> list[dict[str, str]]:
    """How far a judge can be trusted that is the audited model itself, and what nobody knows of it."""
    judge = next((r.evaluator for r in presence if r.evaluator is not None and r.evaluator.judges_itself), None)
    if judge is None:
        return []
    alone = all(r.evaluator == judge for r in presence)
    text = f"{_upper(judge.name)} judged{' these pictures' if alone else ' as well'}; no outside truth calibrated it."
    errors = {name: [r for r in readings if r.name == name and r.role == "target"] for name in (MISSED, IMAGINED)}
    if errors[MISSED]:
        missed = _names([f"{r.value:.0f} % ({percent(r.low, r.high)}) of {_quoted(r.concept)}" for r in errors[MISSED]])
        text += f" On the untouched model's own pictures it missed {missed}"
        if errors[IMAGINED]:
            seen = _names([f"{r.value:.0f} % ({percent(r.low, r.high)})" for r in errors[IMAGINED]])
            text += f", and saw {'it' if len(errors[MISSED]) == 1 else 'them'} by mistake in {seen} of those that ask "
            text += "for another of its kind"
        text += "; the limits of presence allow for both."
    return [_say("unsure" if alone else "plain", text)]


def _target(r: Reading, aim: str, *, by: bool = False) -> dict[str, str]:
    """Args: by: whether to say who judged."""
    state = _state(r, aim)
    text = f"By {r.evaluator.name}: " if by and r.evaluator is not None else ""
    text += (
        f"{_quoted(r.concept)} is {state}: {r.value:.0f} % ({percent(r.low, r.high)}) of the pictures that ask for it "
        f"show it, before {r.before or 0:.0f} %."
    )
    instead = r.detail.get("instead") or []
    if instead and state in ("gone", "weaker, not gone"):
        text += " More often seen instead: " + _names([f"{w} (+{p:.0f} points)" for w, p in instead]) + "."
    good = state in ("gone", "learned")
    bad = verdict(r) == "unchanged" or state in ("not learned", "shown less often than before")
    return _say("good" if good else "bad" if bad else "unsure", text)


def _others(found: list[Reading], what: str) -> list[dict[str, str]]:
    """Concepts of one role: those that changed one by one, the others together."""
    single = [r for r in found if r.concept]
    by = {v: [r for r in single if verdict(r) == v] for v in ("changed", "unchanged", "cannot tell")}
    said = []
    for r in by["changed"]:
        change = r.change
        if change is None:
            continue
        down = change.value < 0
        moved = f"{'lost' if down else 'gained'} {abs(change.value):.0f} points"
        limits = f"{change.low:+.0f} to {change.high:+.0f}".replace("-", "−")
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


def _listed(r: Reading) -> dict[str, str]:
    """A target in the pictures of prompts that the user brought."""
    moved = {"changed": "", "unchanged": ", which is no change", "cannot tell": ", too few pictures to tell a change"}
    text = (
        f"The user's own prompts: {r.concept}, {r.value:.0f} % ({percent(r.low, r.high)}) of {r.n} pictures show it, "
        f"before {r.before or 0:.0f} %{moved[verdict(r)]}."
    )
    return _say("plain", text)


def _unreadable(found: list[Reading]) -> list[dict[str, str]]:
    """Pictures that are none in the untouched model already: neither change nor calm means anything there."""
    broken = [r for r in found if (r.before or 0.0) >= BROKEN and r.value >= BROKEN]
    if not broken:
        return []
    where = _names([f"{r.before:.0f} % of {_pictures(r)} (after: {r.value:.0f} %)" for r in broken])
    text = (
        f"Alarm: {where} are one colour, noise or copies in the untouched model already: nothing can be read from them"
    )
    return [_say("bad", text + ". Check the model and its sampling settings.")]


def _collapse(found: list[Reading]) -> list[dict[str, str]]:
    worse = [r for r in found if r.value - (r.before or 0.0) >= ALARM and verdict(r) == "changed"]
    if not found or (not worse and _unreadable(found)):
        return []
    if not worse:
        return [_say("good", "No sign of collapse: pictures did not turn into noise, one colour or copies.")]
    where = _names([f"{r.value:.0f} % of {_pictures(r)} (before {r.before or 0:.0f} %)" for r in worse])
    return [_say("bad", f"Over-erasure alarm: {where} are noise, one colour or copies of another.")]


def _few(readings: Sequence[Reading]) -> list[dict[str, str]]:
    """Frechet distances to reference pictures that rest on fewer pictures than features."""
    found = [r for r in readings if r.name == FRECHET and min(r.n, r.detail["reference"]) <= r.detail["features"]]
    if not found:
        return []
    counts = sorted({min(r.n, r.detail["reference"]) for r in found})
    some = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    text = f"Frechet distances to the reference rest on {some} pictures of {found[0].detail['features']} features"
    more = "their covariance has no full rank, and they are larger than those of more pictures would be; compare them "
    return [_say("unsure", f"{text}: {more}with equal numbers alone.")]


def _pictures(r: Reading) -> str:
    return f"the pictures of {r.concept}" if r.role == LISTED else f"the {r.role} pictures"


def _oracle(readings: Sequence[Reading]) -> list[dict[str, str]]:
    found = [r for r in readings if r.name == NEVER_SAW]
    return [
        _say("plain", f"A model that never saw {_quoted(r.concept)} shows it in {r.value:.0f} % of the same pictures.")
        for r in found
    ]


def _resurfaced(r: Reading) -> dict[str, str]:
    """Back: the interval at the end lies above the whole interval at the start."""
    lines: tuple[Series, ...] = r.curve.series if r.curve else ()
    series = {s.name: s for s in lines}
    spent, mine = r.detail["budget"], series[EDITED]
    of = "other things" if r.name == RELEARNT["benign"] else "it"
    work = f"{r.detail['steps'][-1]} steps of fine-tuning on {spent['pictures']} pictures of {of}"
    if r.name == INVERTED:
        work = f"an attack of {spent['steps']} steps that learns {spent['words']} words"
    first, *later = mine.y
    back = bool(later) and r.low > max(mine.high[:1], default=100.0)
    text = f"After {work}, {_quoted(r.concept)} is {'back' if back else 'shown'} in {r.value:.0f} % "
    text += f"({percent(r.low, r.high)}) of {r.n} pictures"
    if r.detail["steps"][0] == 0:
        text += f", before that {first:.0f} %"
    if NEVER in series:
        text += f"; a model that never saw it shows it in {series[NEVER].y[-1]:.0f} % after the same"
    return _say("bad" if back else "plain", text + ".")


def _weights(readings: Sequence[Reading]) -> list[dict[str, str]]:
    found = [r for r in readings if r.name == "relative weight change"]
    if not found:
        return []
    r = found[0]
    brought = [f"{_quoted(word)} ({k} vectors)" for word, k in r.detail.get("words", {}).items()]
    words = f" It brings {'the word' if len(brought) == 1 else 'the words'} {_names(brought)}." if brought else ""
    if not r.n:
        rule = _names(list(r.detail.get("hooks", [])))
        text = f"No weight is changed{f': {rule} acts while the model samples' if rule else ''}."
        return [_say("plain", text + words)]
    tensors = "1 tensor" if r.n == 1 else f"{r.n} tensors"
    size = r.detail["bytes"]
    kept = f"{size} bytes" if size < 1000 else f"{size / 1e3:.0f} KB" if size < 1e6 else f"{size / 1e6:.1f} MB"
    norm = f"by {r.value:.2g} % of their norm" if r.value else "from zero"
    return [_say("plain", f"The patch changes {tensors} {norm} and takes {kept}.{words}")]


def _quoted(name: str) -> str:
    return f"“{name}”"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def _say(tone: str, text: str) -> dict[str, str]:
    return {"tone": tone, "text": text}
