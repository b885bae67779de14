"""The same wishes in other words, so that erasing a word is not mistaken for erasing a concept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch

from palimpsest.probes.plan import Group, Plan
from palimpsest.tiny import phrases

PARAPHRASES = 6  # prompts for each target and seed


def with_paraphrases(plan: Plan, n: int = PARAPHRASES) -> Plan:
    """The plan with one more group for each target, behind all others, so that no other picture's seed changes."""
    groups = [
        Group(
            role="paraphrase",
            concept=g.concept,
            prompts=reworded(g.prompts[:n], g.name),
            seeds=g.seeds,
            reason="asked for in other words",
        )
        for g in plan.groups
        if g.role == "target"
    ]
    return replace(plan, groups=(*plan.groups, *groups))


def reworded(prompts: Sequence[str], word: str) -> tuple[str, ...]:
    """Each prompt in other words: the target's synonyms in turn, every second one behind an opening.

    A name has no synonym: every word around it that has one is replaced instead, and each prompt gets an opening.
    The words are those that the small models' text encoders were trained to read alike; their pictures never were.
    """
    generator = torch.Generator().manual_seed(len(prompts))
    synonyms = phrases.SYNONYMS.get(word, ())
    found = []
    for i, prompt in enumerate(prompts):
        if synonyms:
            said = re.sub(rf"\b{re.escape(word)}\b", synonyms[i % len(synonyms)], prompt)
            found.append(phrases.reopen(said, generator) if i % 2 else said)
        else:
            found.append(phrases.reopen(phrases.reword(prompt, generator, rate=1.0), generator))
    return tuple(found)
