"""An edited generator as files: those of the untouched one, with what a patch changes, block by block."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.files import build_beside
from palimpsest.core.patch import Patch
from palimpsest.core.stored import Files, Place, Stored, Tensors
from palimpsest.core.streams import Stream, write


class _Use(NamedTuple):
    """Rows of a file's tensor as rows of a model's: from `start` to `stop` in the file, from `at` on in the model."""

    name: str
    place: Place
    start: int
    stop: int
    at: int


def write_edited(base: Path, files: Stored, patch: Patch, out: Path) -> Path:
    """Writes a model's files once more, with a patch in them: the same names, shards and precision.

    Args:
        base: the folder of a pipeline, or a checkpoint in one file. files: its tensors (`hosts.load.stored`).
        patch: of that model; weights alone.
        out: a folder that is not there yet, or a file.

    Raises:
        Unsupported: the patch acts while the model runs or brings words, or the model is none whose files are known.
        BadRequest: `out` is there, or is a file where a folder is due.

    Cost: every file is read and written once; a block is held. Changed numbers are added in float32 and rounded once.
    """
    if patch.hooks or patch.words:
        raise Unsupported("Only changes of weights go into a model's files; words and rules do not. Keep the patch.")
    if not isinstance(files, Files):
        raise Unsupported(f"{base} is no generator whose files can be written here.")
    if out.exists() or base.is_file() != (out.suffix == ".safetensors"):
        due = "a .safetensors file" if base.is_file() else "a folder"
        raise BadRequest(f"{out} {'is there already' if out.exists() else f'should be {due}, as the model is'}.")
    if base.is_file():
        _rewrite(base, files, patch, out)
        return out

    def build(folder: Path) -> None:
        for path in sorted(p for p in base.rglob("*") if p.is_file()):
            there = folder / path.relative_to(base)
            there.parent.mkdir(parents=True, exist_ok=True)
            if path in {piece.file for place in files.places.values() for piece in place.pieces}:
                _rewrite(path, files, patch, there)
            elif path.suffix != ".safetensors":  # other precisions of the same weights would be untouched ones
                shutil.copyfile(path, there)

    return build_beside(out, build)


def _rewrite(path: Path, files: Files, patch: Patch, out: Path) -> None:
    held = Tensors(path)
    uses: dict[str, list[_Use]] = {}
    for name, place in files.places.items():
        at = 0
        for piece in place.pieces:
            if piece.file == path and name in patch.deltas:
                uses.setdefault(piece.key, []).append(_Use(name, place, piece.start, piece.stop, at))
            at += piece.stop - piece.start
    streams = {key: _stream(held, key, uses.get(key, []), patch) for key in held.names()}
    write(out, streams, lambda each: held.metadata)


def _stream(held: Tensors, key: str, uses: Sequence[_Use], patch: Patch) -> Stream:
    shape, kind = held.shape(key), held.dtype(key)
    once = list({(use.start, use.stop): use for use in uses}.values())  # a tensor with two names is changed once

    def rows(start: int, stop: int) -> Tensor:
        found = held.rows(key, start, stop)
        if not once:
            return found
        wide = found.to(torch.promote_types(kind, torch.float32))
        for use in once:
            first, last = max(start, use.start), min(stop, use.stop)
            if first < last:
                there = use.place.shape
                if use.place.turned:
                    change = patch.rows(use.name, there, 0, there[0]).T[first:last]
                else:
                    shift = use.at - use.start
                    change = patch.rows(use.name, there, first + shift, last + shift)
                wide[first - start : last - start] += change.reshape(last - first, *wide.shape[1:])
        return wide.to(kind)

    return Stream.by_rows(kind, shape, rows)
