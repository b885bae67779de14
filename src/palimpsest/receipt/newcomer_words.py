"""What a receipt says of a newcomer beside its presence, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from palimpsest.core.reading import Reading
from palimpsest.probes.carried import CARRIED
from palimpsest.probes.class_drift import TAKEN_OVER
from palimpsest.probes.copied import COPIED
from palimpsest.probes.likeness import LIKENESS
from palimpsest.probes.obedience import OBEDIENCE
from palimpsest.probes.verdict import verdict
from palimpsest.receipt.generator_words import percent

SOME = 5.0  # percent of copies from which they are worth a look


def sentences(readings: Sequence[Reading]) -> list[dict[str, str]]:
    """Sentences with their tone, by the first judge that says something of each newcomer."""
    said = []
    for name, tell in (
        (LIKENESS, _likeness),
        (OBEDIENCE, _obedience),
        (CARRIED, _carried),
        (TAKEN_OVER, _taken_over),
        (COPIED, _copied),
    ):
        found: dict[tuple[str, str], list[Reading]] = {}
        for r in readings:
            if r.name == name and r.evaluator is not None:
                found.setdefault((r.detail.get("newcomer", r.concept), r.evaluator.name), []).append(r)
        first = {concept: rows for (concept, _), rows in reversed(found.items())}
        said += [tell(concept, rows) for concept, rows in reversed(first.items())]
    return said


def _likeness(concept: str, rows: list[Reading]) -> dict[str, str]:
    (r,) = rows
    ends = [
        f"{r.detail[key]:.2f} {what}"
        for key, what in (("same", "among the references"), ("others", "for its neighbours"))
        if r.detail[key] is not None
    ]
    beside = f" (it is {' and '.join(ends)})" if ends else ""
    limits = f"{r.low:.2f} to {r.high:.2f}"
    text = f"Likeness of “{concept}” to its references: {r.value:.2f} ({limits}), with the class in its place "
    return _say("plain", f"{text}{r.before or 0:.2f}{beside}.")


def _obedience(concept: str, rows: list[Reading]) -> dict[str, str]:
    parts = [
        f"{r.detail['kind']} {r.value:.0f} % ({percent(r.low, r.high)}), before {r.before or 0:.0f} %" for r in rows
    ]
    lost = [r for r in rows if verdict(r) == "changed" and r.value < (r.before or 0.0)]
    held = all(verdict(r) == "unchanged" or r.value >= (r.before or 0.0) for r in rows)
    start = "Other words count less" if lost else "Other words still count"
    tone = "bad" if lost else "good" if held else "unsure"
    return _say(tone, f"{start} beside “{concept}”: {'; '.join(parts)}.")


def _carried(concept: str, rows: list[Reading]) -> dict[str, str]:
    came = [r for r in rows if verdict(r) == "changed" and r.value > (r.before or 0.0)]
    if not came:
        shared = ", ".join(f"{r.detail['word']} ({r.detail['kind']})" for r in rows)
        text = f"Nothing is seen to come along with “{concept}” unasked; most of its references share {shared}."
        return _say("plain", text)
    parts = [
        f"{r.detail['word']} ({r.detail['kind']}), in {r.value:.0f} % ({percent(r.low, r.high)}) of the pictures that "
        f"leave it open instead of {r.before or 0:.0f} %"
        for r in came
    ]
    return _say("bad", f"Came along with “{concept}” unasked: {'; '.join(parts)}.")


def _taken_over(concept: str, rows: list[Reading]) -> dict[str, str]:
    (r,) = rows
    of = f"“{r.detail['class']}” shows “{concept}” in {r.value:.0f} % ({percent(r.low, r.high)}) of its pictures, "
    tone = {"changed": "bad", "unchanged": "good"}.get(verdict(r), "unsure")
    return _say(tone if r.value >= (r.before or 0.0) else "plain", f"{of}before {r.before or 0:.0f} %.")


def _copied(concept: str, rows: list[Reading]) -> dict[str, str]:
    (r,) = rows
    text = f"{r.value:.0f} % ({percent(r.low, r.high)}) of the pictures of “{concept}” are nearer to a reference than "
    text += f"its references are to each other, of those of its class before {r.before or 0:.0f} %."
    return _say("unsure" if r.low > max(SOME, r.before or 0.0) else "plain", text)


def _say(tone: str, text: str) -> dict[str, str]:
    return {"tone": tone, "text": text}
