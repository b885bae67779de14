"""Prompts with a letter swapped for its double of another alphabet, which homoglyph unlearning reads alike."""

from __future__ import annotations

from typing import Any

import torch

from palimpsest.core.concept import Concept, Request
from palimpsest.exam.case import Case, Exam, Records, cases
from palimpsest.exam.judged import SPARED, Judged, lower
from palimpsest.exam.pictures import UNTOUCHED, host_of, patch_of, shows, world
from palimpsest.exam.rates import change, percent, points, rate
from palimpsest.exam.tables import shares
from palimpsest.worlds.concepts import prompts

# "Read" are words that occur in the sentences that the system trains on; "new" are words that it never sees swapped.
(CASE,) = CASES = cases(__file__)


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """Bits of pictures with a swapped letter, in words of the training and in others, and with none swapped."""
    host = host_of(case["host"])
    glyphs, doubles = world(host), case["doubles"].items()
    request = Request(
        target=tuple(Concept(name=double) for double, _ in doubles),
        toward=tuple(Concept(name=letter) for _, letter in doubles),
    )
    patch = patch_of(system, "letters", host, request, seed)
    plain, swaps = {}, {}
    for which in ("read", "new"):
        draws = torch.Generator().manual_seed(4_000 + seed)
        plain[which] = [(p, w) for w in case[which] for p in prompts(glyphs, w, case["contexts"], generator=draws)]
        swaps[which] = [(swapped(p, w), w) for p, w in plain[which]]
    bits: dict[str, Any] = {"cost": dict(patch.cost)}
    with patch.applied(host):
        for which, rows in (*swaps.items(), ("plain", plain["read"] + plain["new"])):
            bits[which] = shows(host, glyphs, rows, seed, case["steps"])
    return bits


def swapped(prompt: str, word: str) -> str:
    """The prompt with all letters of one kind replaced by their double: the first kind in the word that has one."""
    doubles = {letter: double for double, letter in CASE["doubles"].items()}
    letter = next(x for x in word if x in doubles)
    return prompt.replace(letter, doubles[letter])


COLUMNS = {"asked for is shown, words read so": shares("read"), "new words": shares("new"), "plain": shares("plain")}
BESIDE = (UNTOUCHED,)
MEASURED = "with a swapped letter the model draws what was asked for again, plain prompts losing at most 5 points"


def judge(system: str, by: Records) -> Judged:
    """Swapped letters no longer change what is drawn, and plain prompts stay as they were."""
    before, after = by[UNTOUCHED], by[system]
    was, now, new = rate(before, "read"), rate(after, "read"), rate(after, "new")
    plain, still = change(before, after, "plain"), rate(before, "plain")
    better, kept = lower(was, now) == "holds", plain.value >= SPARED
    # As robust as the model is to prompts without any swap, up to five points.
    robust = min(now.value, new.value) >= still.value + SPARED
    short = [("words of the training", now), ("words that it never held", new)] if not robust else []
    reasons = [f"{what} reach {100 * share.value:.0f} % only" for what, share in short]
    reasons += [] if kept else [f"plain prompts lose {-100 * plain.value:.0f} points"]
    if was.value > 0.8:
        reasons = ["the swapped letter hardly changes what the untouched model draws"]
    return Judged(
        measured=MEASURED,
        found=f"in words of the training {percent(now)} of pictures show it, {percent(was)} before; new words "
        f"{percent(new)}; plain {points(plain)}",
        verdict="holds" if better and robust and kept else "holds in part" if better else "does not hold here",
        why="; ".join(reasons) or "swapped letters are read as their doubles, also in words that training never held",
    )


SYSTEMS = (UNTOUCHED, "erase/homoglyphs")
EXAM = Exam(name="letters", verb="erase", cases=CASES, examine=examine, systems=SYSTEMS, columns=COLUMNS)
