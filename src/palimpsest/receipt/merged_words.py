"""What a receipt says of a merge: what each change kept, lost, and what cannot be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from palimpsest.core.reading import Reading
from palimpsest.probes.conflict import CONFLICT
from palimpsest.probes.retention import RETENTION
from palimpsest.probes.verdict import verdict
from palimpsest.receipt.generator_words import percent

State = Literal["kept", "lost", "more", "cannot tell"]
FAR = 0.3  # a cosine from which two changes point the same way or against each other


def state(r: Reading) -> State:
    """What became of a change in the merged model: lost where it went back towards the untouched model."""
    found = verdict(r)
    if found != "changed":
        return "kept" if found == "unchanged" else "cannot tell"
    alone, untouched = r.before or 0.0, r.detail["untouched"]
    back = (r.value - alone) * (untouched - alone)
    return "lost" if back > 0 else "more"


def headline(readings: Sequence[Reading], names: Sequence[str]) -> str:
    """One short sentence about all changes, by the first judge that knows each target."""
    found = _first(readings)
    if not found:
        return f"{_all(names)} merged; what they do together was not measured"
    by = {s: [r.concept for r in found if state(r) == s] for s in ("kept", "more", "lost", "cannot tell")}
    if len(by["kept"]) + len(by["more"]) == len(found):
        return f"{_all([_quoted(r.concept) for r in found])} {'are' if len(found) > 1 else 'is'} kept after merging"
    said = [f"{_all(list(map(_quoted, by['lost'])))} lost" if by["lost"] else ""]
    said += [f"{_all(list(map(_quoted, [*by['kept'], *by['more']])))} kept" if by["kept"] or by["more"] else ""]
    said += [f"{_all(list(map(_quoted, by['cannot tell'])))} cannot be told" if by["cannot tell"] else ""]
    return "; ".join(filter(None, said))


def sentences(readings: Sequence[Reading], parts: Sequence[str]) -> list[dict[str, str]]:
    """Sentences with their tone: "good", "bad", "unsure" or "plain".

    Args:
        parts: names of the changes of which nobody said what they are about.
    """
    said = [_kept(r) for r in _first(readings)]
    for name in parts:
        text = f"Nobody said what {name} is about (--about), so what it does in the merged model was not measured."
        said.append({"tone": "unsure", "text": text})
    said += [_conflict(r) for r in readings if r.name == CONFLICT]
    return said


def _kept(r: Reading) -> dict[str, str]:
    text = (
        f"{_quoted(r.concept)}, shown in {r.before or 0:.0f} % of the pictures that ask for it with {r.detail['part']} "
        f"alone, is shown in {r.value:.0f} % ({percent(r.low, r.high)}) after merging; untouched "
        f"{r.detail['untouched']:.0f} %: "
    )
    change = abs(r.change.value) if r.change is not None else 0.0
    ends = {
        "kept": ("good", "kept."),
        "lost": ("bad", f"lost {change:.0f} points."),
        "more": ("good", f"kept, {change:.0f} points further."),
        "cannot tell": ("unsure", "too few pictures to tell."),
    }
    tone, end = ends[state(r)]
    return {"tone": tone, "text": text + end}


def _conflict(r: Reading) -> dict[str, str]:
    first, second = r.detail["parts"]
    cosine = f"{r.value:+.2f}".replace("-", "−")
    text = f"The weights of {first} and {second} have a cosine of {cosine}"
    if r.detail["shared"] > 0:
        text += (
            f"; {r.detail['shared']:.0f} % of their largest entries are the same, {r.detail['opposed']:.0f} % of these "
            "with opposite signs"
        )
    return {"tone": "unsure" if r.value < -FAR else "plain", "text": text + "."}


def _first(readings: Sequence[Reading]) -> list[Reading]:
    """Of each change and target, the reading of the first judge that knows it."""
    found: dict[tuple[str, str], Reading] = {}
    for r in readings:
        if r.name == RETENTION:
            found.setdefault((r.detail["part"], r.concept), r)
    return list(found.values())


def _quoted(name: str) -> str:
    return f"“{name}”"


def _all(names: Sequence[str]) -> str:
    names = list(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "Nothing"
