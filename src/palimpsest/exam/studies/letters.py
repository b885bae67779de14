"""Pictures of prompts in which one letter was swapped for its double of another alphabet."""

from __future__ import annotations

from typing import Any

import torch

from palimpsest.core.concept import Concept, Request
from palimpsest.core.patch import Patch
from palimpsest.exam.case import Case, Exam, cases
from palimpsest.exam.pictures import UNTOUCHED, cost, host_of, method_of, shows, world
from palimpsest.exam.tables import shares
from palimpsest.worlds.concepts import prompts

# "Read" are words that occur in the sentences that the system trains on; "new" are words that it never sees swapped.
(CASE,) = CASES = cases(__file__)


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """Bits of pictures with a swapped letter, in words of the training and in others, and with none swapped."""
    host = host_of(case["host"])
    patch, glyphs = Patch(base=host.fingerprint()), world(host)
    if system != UNTOUCHED:
        doubles = case["doubles"].items()
        request = Request(
            target=tuple(Concept(name=double) for double, _ in doubles),
            toward=tuple(Concept(name=letter) for _, letter in doubles),
        )
        patch = method_of(system, "letters")(host, request, seed=seed)
    plain, swaps = {}, {}
    for which in ("read", "new"):
        draws = torch.Generator().manual_seed(4_000 + seed)
        plain[which] = [(p, w) for w in case[which] for p in prompts(glyphs, w, case["contexts"], generator=draws)]
        swaps[which] = [(swapped(p, w), w) for p, w in plain[which]]
    bits: dict[str, Any] = {"cost": cost(patch)}
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
SYSTEMS = (UNTOUCHED, "erase/homoglyphs")
EXAM = Exam(name="letters", verb="erase", cases=CASES, examine=examine, systems=SYSTEMS, columns=COLUMNS)
