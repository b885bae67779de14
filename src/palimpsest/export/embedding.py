"""Words of a patch as embeddings (textual inversion) that A1111, ComfyUI and diffusers read.

| model | tensors of a word's file |
|---|---|
| one CLIP encoder (SD1, SD2; Flux) | the word itself: (k, d) |
| two CLIP encoders (SDXL; SD3) | `clip_l`, `clip_g`: (k, d) each |

A1111 and ComfyUI call a word by its file's name: `crown`, `embedding:crown`; diffusers by what it is told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.core.declared import shown
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.files import write_beside
from palimpsest.core.patch import Patch
from palimpsest.core.words import Word

PAIR = ("clip_l", "clip_g")
"""What other programs call the first and the second CLIP encoder of a model that has two."""
WORD = "palimpsest_word"
"""Where the header of a file of ours says how prompts call the word."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """One word that was written.

    Args:
        word: as prompts of the patch say it.
        path: its file, called as A1111 and ComfyUI call the word.
        vectors: how many tokens of a prompt it takes.
        diffusers: the calls by which diffusers reads it, as Python.
    """

    word: str
    path: Path
    vectors: int
    diffusers: tuple[str, ...]


def export_words(
    patch: Patch, out: str | Path, *, host: Any = None, half: bool = False, force: bool = False
) -> list[Embedded]:
    """Writes each word of a patch as an embedding in a safetensors file of its own.

    Args:
        host: the model that the patch was made for, to hold it against; None: it is not.
        out: the folder to write to.
        half: float16 instead of float32.
        force: also where the host is not the model that the patch was made for.

    Raises:
        BadRequest: the patch brings no word, or two whose files would have one name.
        Unsupported: vectors that no other program reads.
        WrongBase, Damaged: the patch does not fit the host.
    """
    if not patch.words:
        raise BadRequest("The patch brings no word; export its weights as a LoRA: --format peft or kohya.")
    if host is not None:
        patch.fits(host, force=force)
    dtype = torch.float16 if half else torch.float32
    held = {word: _tensors(word, meant, dtype) for word, meant in sorted(patch.words.items())}
    paths: dict[Path, str] = {}
    for word in held:
        path = Path(out) / f"{file_name(word)}.safetensors"
        if (other := paths.setdefault(path, word)) != word:
            raise BadRequest(f"{shown(word)} and {shown(other)} would both be called {path.name}; rename one of them.")
    told = json.dumps({"base": patch.base, "patch": patch.sha256()}, sort_keys=True)
    for path, word in paths.items():
        header = {"format": "pt", "name": path.stem, "palimpsest_export": told, WORD: word}
        write_beside(path, lambda tmp, word=word, header=header: save_file(held[word], tmp, metadata=header))
    return [
        Embedded(
            word=word, path=path, vectors=len(next(iter(held[word].values()))), diffusers=_calls(word, path, held[word])
        )
        for path, word in paths.items()
    ]


def file_name(word: str) -> str:
    """What a word's file is called: the word without brackets, other signs as `_`."""
    return re.sub(r"[^\w.-]+", "_", word.strip("<>")).strip(".") or "word"


def tensors_of(word: str, meant: Word) -> dict[str, Tensor]:
    """The word's vectors as other programs call them: `PAIR`, or the word itself where there is one CLIP encoder.

    Raises:
        Unsupported: vectors of other encoders, or of two encoders in different numbers.
    """
    own = dict(sorted(meant.vectors.items()))
    if odd := [table for table in own if not _of_clip(table)]:
        raise Unsupported(f"{shown(word)} has vectors for {odd[0]}; other programs read those of CLIP encoders alone.")
    if len({len(vectors) for vectors in own.values()}) > 1:
        raise Unsupported(f"{shown(word)} has more vectors for one encoder than for the other; no program reads that.")
    return dict(zip((word,) if len(own) == 1 else PAIR, own.values(), strict=True))


def _of_clip(table: str) -> bool:
    return table.startswith(("text_encoder.", "text_encoder_2.")) and table.endswith("token_embedding")


def _tensors(word: str, meant: Word, dtype: torch.dtype) -> dict[str, Tensor]:
    found = {key: t.detach().cpu().to(dtype).contiguous().clone() for key, t in tensors_of(word, meant).items()}
    if not all(bool(torch.isfinite(t).all()) for t in found.values()):
        raise Unsupported(f"{shown(word)} has numbers that are not finite in {dtype}; export in float32.")
    return found


def _calls(word: str, path: Path, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    if len(tensors) == 1:
        return (f"pipe.load_textual_inversion({str(path)!r})",)
    calls = [
        f"pipe.load_textual_inversion(held[{key!r}], token={word!r}, "
        f"text_encoder=pipe.text_encoder{end}, tokenizer=pipe.tokenizer{end})"
        for key, end in zip(PAIR, ("", "_2"), strict=True)
    ]
    return (f"held = safetensors.torch.load_file({str(path)!r})", *calls)
