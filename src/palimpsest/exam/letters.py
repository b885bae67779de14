"""Homoglyph unlearning's own measure: pictures of prompts in which one letter was swapped for its double."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from palimpsest.exam.judged import SPARED, Judged, lower, percent, points
from palimpsest.exam.study import STAND_INS, UNTOUCHED, Records, Study, change, cost, pictures, rate, seen, worked

NAME = "letters"
ME = "erase/homoglyphs"
# "Read" are words that occur in the sentences that the system trains on; "new" are words that it never sees swapped.
SETTINGS: dict[str, Any] = {
    "host": "tiny/sd",
    "doubles": {"\u043e": "o"},
    "read": ("moon", "house", "boat", "mushroom"),
    "new": ("arrow", "anchor", "bolt", "cross"),
    "training": {"characters": 0, "steps": 400},  # every o of a text, not only its first
    "contexts": 3,
    "steps": 15,
}
TEXT = """### Letters

Every o of a prompt is replaced by the Cyrillic letter that looks the same. *Words read so*: {read}, which the sentences
of the training hold; *new words*: {new}, which they do not. *Plain*: the same prompts with Latin letters. {n} pictures
a seed in each column, drawn in {steps} steps. The training swaps every o of a sentence, and takes twice the steps of
the main exam.

| system | asked for is shown, words read so | new words | plain |
|---|---|---|---|"""
SETS = ("read", "new", "plain")


def examine(system: str, seed: int) -> dict[str, Any]:
    """Bits of pictures with a swapped letter, in words of the training and in others, and with none swapped."""
    from palimpsest.core.concept import Concept, Request
    from palimpsest.core.patch import Patch
    from palimpsest.exam.pictures import host_of
    from palimpsest.exam.work import method_of

    host, spent, patch = host_of(SETTINGS["host"]), {}, None
    if system not in STAND_INS:
        doubles = SETTINGS["doubles"].items()
        request = Request(
            target=tuple(Concept(name=double) for double, _ in doubles),
            toward=tuple(Concept(name=letter) for _, letter in doubles),
        )
        method = replace(method_of(system), **SETTINGS["training"])
        patch = method(host, request, seed=seed)
        spent = cost(patch)
    asked = {which: _asked(host, SETTINGS[which], seed) for which in ("read", "new")}
    asked["plain"] = asked["read"] + asked["new"]
    found: dict[str, Any] = {"cost": spent}
    with (patch or Patch(base=host.fingerprint())).applied(host):
        for which, rows in asked.items():
            prompts = [p if which == "plain" else swapped(p, c.name) for p, c in rows]
            images = pictures(host, prompts, seed, steps=SETTINGS["steps"])
            found[which] = seen(host, images, [c for _, c in rows])
    return found


def _asked(host: Any, words: tuple[str, ...], seed: int) -> list[tuple[str, Any]]:
    import torch

    from palimpsest.worlds import concepts as words_of

    world = words_of.world_of(host.folder)
    assert world is not None  # the exam's models are of drawn worlds
    draws = torch.Generator().manual_seed(4_000 + seed)
    return [
        (prompt, words_of.concept(world, word))
        for word in words
        for prompt in words_of.prompts(world, word, SETTINGS["contexts"], generator=draws)
    ]


def swapped(prompt: str, word: str) -> str:
    """The prompt with all letters of one kind replaced by their double: the first kind in the word that has one."""
    doubles = {letter: double for double, letter in SETTINGS["doubles"].items()}
    letter = next(x for x in word if x in doubles)
    return prompt.replace(letter, doubles[letter])


def lines(by: Records, name: Any) -> list[str]:
    """The table."""
    n = SETTINGS["contexts"] * len(SETTINGS["read"])
    said = {k: ", ".join(SETTINGS[k]) for k in ("read", "new")}
    text = TEXT.format(**said, n=f"{n}, {n} and {2 * n}", steps=SETTINGS["steps"])
    rows = [
        f"| {name(s)} | " + " | ".join(percent(rate(rs, k)) for k in SETS) + " |"
        for s, rs in by.items()
        if worked(by, s)
    ]
    return [text, *rows, ""]


def judge(system: str, by: Records) -> Judged:
    """Swapped letters no longer change what is drawn, and plain prompts stay as they were."""
    measured = "with a swapped letter the model draws what was asked for again, plain prompts losing at most 5 points"
    if not worked(by, system, UNTOUCHED):
        return Judged(measured=measured, found="", verdict="not measured", why="the study was not run")
    before, after = by[UNTOUCHED], by[system]
    was, now, new = rate(before, "read"), rate(after, "read"), rate(after, "new")
    plain, still = change(before, after, "plain"), rate(before, "plain")
    better = lower(was, now)
    # As robust as the model is to prompts without any swap, up to five points.
    robust = min(now.value, new.value) >= still.value + SPARED
    whole = better == "holds" and robust and plain.value >= SPARED
    gain = (
        f"in words of the training {percent(now)} of pictures show it, {percent(was)} before; new words {percent(new)}"
    )
    return Judged(
        measured=measured,
        found=f"{gain}; plain {points(plain)}",
        verdict="holds" if whole else "holds in part" if better == "holds" else "does not hold here",
        why=_why(was.value, robust, now.value, new.value, plain.value),
    )


def _why(was: float, robust: bool, now: float, new: float, plain: float) -> str:
    if was > 0.8:
        return "the swapped letter hardly changes what the untouched model draws"
    reasons = [
        f"{what} reach {100 * share:.0f} % only"
        for what, share in (("words of the training", now), ("words that it never held", new))
        if not robust
    ]
    if plain < SPARED:
        reasons.append(f"plain prompts lose {-100 * plain:.0f} points")
    return "; ".join(reasons) or "swapped letters are read as their doubles, also in words that training never held"


STUDY = Study(settings=SETTINGS, systems=(UNTOUCHED, ME), examine=examine)
