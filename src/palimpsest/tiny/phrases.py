"""Other ways to say a caption: openings that add nothing, and words that mean the same."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator

_WORDS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
OPENINGS: tuple[str, ...] = tuple(_WORDS["openings"])
# One word for one word, so that the two captions' states can be compared place by place.
SYNONYMS: dict[str, tuple[str, ...]] = {word: tuple(others) for word, others in _WORDS["synonyms"].items()}


def _pick(options: tuple[str, ...], generator: Generator) -> str:
    return options[int(torch.randint(len(options), (1,), generator=generator))]


def reopen(caption: str, generator: Generator) -> str:
    """The caption behind an opening that adds nothing ("a picture of ...")."""
    return f"{_pick(OPENINGS, generator)} {caption}"


def reword(caption: str, generator: Generator, *, rate: float = 0.5) -> str:
    """The caption with each word that has synonyms replaced by one of them at probability `rate`."""

    def swap(match: re.Match[str]) -> str:
        word = match.group(0)
        if word not in SYNONYMS or float(torch.rand(1, generator=generator)) >= rate:
            return word
        return _pick(SYNONYMS[word], generator)

    return re.sub(r"[a-z]+", swap, caption)


def reworded(prompts: Sequence[str], word: str) -> tuple[str, ...]:
    """Each prompt in other words: the target's synonyms in turn, every second one behind an opening.

    A name has no synonym: every word around it that has one is replaced instead, and each prompt gets an opening.
    The words are those that the small models' text encoders were trained to read alike; their pictures never were.
    """
    generator = Generator().manual_seed(len(prompts))
    synonyms = SYNONYMS.get(word, ())
    found = []
    for i, prompt in enumerate(prompts):
        if synonyms:
            said = re.sub(rf"\b{re.escape(word)}\b", synonyms[i % len(synonyms)], prompt)
            found.append(reopen(said, generator) if i % 2 else said)
        else:
            found.append(reopen(reword(prompt, generator, rate=1.0), generator))
    return tuple(found)
