"""Read a tiny pipeline's pictures back: does each show what its prompt asked for?"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from palimpsest.tiny import oracle
from palimpsest.tiny.pool import WORLDS

PIPELINES = {"glyphs": "sd", "faces": "portraits"}


def words_asked(
    world: str, n: int, *, generator: Generator, without: str | None = None
) -> tuple[list[str], list[dict[str, str]]]:
    """Captions as in training and, for each, the words that it names."""
    source = WORLDS[world]
    labels = source.sample(n, generator=generator, without=frozenset({without} if without else ()))
    captions = source.caption(labels, generator=generator)
    return captions, [source.read(caption) for caption in captions]


@torch.no_grad()
def score_words(world: str, images: Tensor, asked: list[dict[str, str]]) -> dict[str, float]:
    """Share of asked-for words that the oracle reads, per key; "subject (two)" and the like for two-subject scenes.

    Args:
        images: (n, 3, 64, 64) in [0, 1].
        asked: for each picture, key -> word.
    """
    reader = oracle(world)
    read = reader.read(images)
    right: dict[str, list[float]] = {}
    for row, words in enumerate(asked):
        two = "subject2" in words
        hits = {}
        for key, word in words.items():
            hits[key] = float(reader.vocabulary[key][int(read[key][row].argmax())] == word)
            right.setdefault(f"{key} (two)" if two else key, []).append(hits[key])
        bound = [hits[key] for key in ("subject", "colour", "subject2", "colour2") if key in hits]
        if two:
            right.setdefault("both subjects and colours", []).append(min(bound))
    return {key: sum(values) / len(values) for key, values in sorted(right.items())}
