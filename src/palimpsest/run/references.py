"""The pictures that a word is taught on: a user's own, or drawings of a concept of the model's world."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from palimpsest.core.concept import Kind
from palimpsest.core.errors import BadRequest
from palimpsest.data import references as own
from palimpsest.data.dataset import Dataset
from palimpsest.worlds import references as drawn
from palimpsest.worlds.concepts import Words

WORLD = "world:"


def references(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    host: Any,
    word: str,
    *,
    n: int = 4,
    seed: int = 0,
    captions: str = own.AUTO,
    like: str = "",
    kind: Kind = "object",
    skip_unreadable: bool = False,
) -> Dataset:
    """References of a word at a model's size, each captioned with the word.

    Args:
        source: "world:star" draws that concept of the model's world; otherwise a folder, a file, or several of them
            (`data.references`).
        host: the model that shall learn the word.
        word: what captions call what the pictures show.
        n, seed: how many drawings, and which; of pictures from files all are taken.
        captions, like, kind: as `data.references.captioned` takes them. Drawings have captions with the word already.
        skip_unreadable: leave out files that cannot be decoded.

    Raises:
        BadRequest: the model has no world, or its world no such concept; whatever is wrong with files and captions.
        Damaged: files that cannot be decoded.
    """
    if isinstance(source, str) and source.startswith(WORLD):
        if not isinstance(host.knows, Words):
            raise BadRequest(
                f"{source} asks for drawings of the model's world, and this model was trained on none; give a folder "
                "of pictures."
            )
        draws = torch.Generator().manual_seed(seed)
        data = Dataset(
            samples=drawn.references(host.knows.world, source.removeprefix(WORLD), n, word, draws), classes=()
        )
        pictures = data.samples if captions == own.FILE else own.captioned(data.samples, word, captions, like=like)
    else:
        data = own.references(source, size=host.default_size, skip_unreadable=skip_unreadable)
        pictures = own.captioned(data.samples, word, captions, like=like, kind=kind)
    return Dataset(samples=pictures, classes=(), skipped=data.skipped, left_out=data.left_out, warned=data.warned)
