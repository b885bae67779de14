"""Safetensors files that are written block by block: nothing larger than a block is held."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import write_beside
from palimpsest.core.fingerprint import raw_bytes
from palimpsest.core.stored import TYPES, blocks

NAMES = {kind: name for name, kind in TYPES.items()}


@dataclass(frozen=True)
class Stream:
    """A tensor that is about to be written: its type and shape, and what gives its numbers in order."""

    dtype: torch.dtype
    shape: torch.Size
    blocks: Callable[[], Iterator[Tensor]]

    @staticmethod
    def of(tensor: Tensor) -> Stream:
        """A tensor that is there already."""
        return Stream(tensor.dtype, tensor.shape, lambda: iter((tensor,)))

    @staticmethod
    def by_rows(dtype: torch.dtype, shape: torch.Size, rows: Callable[[int, int], Tensor]) -> Stream:
        """A tensor whose rows from `start` to `stop` a function gives; see `core.stored.blocks`."""
        return Stream(dtype, shape, lambda: (rows(start, stop) for start, stop in blocks(shape)))

    def whole(self) -> Tensor:
        """All of it in memory."""
        parts = [part.reshape(-1) for part in self.blocks()]
        flat = torch.cat(parts) if parts else torch.empty(0)
        return flat.to(self.dtype).reshape(self.shape)


Hashes = Mapping[str, tuple[str, list[int], str]]
"""By name a tensor's type, its shape and the sha256 of its bytes."""


def hashed(tensors: Iterable[tuple[str, Tensor]]) -> Hashes:
    """What `write` gives for tensors, without a file."""
    return {k: (str(t.dtype), list(t.shape), hashlib.sha256(raw_bytes(t)).hexdigest()) for k, t in tensors}


def write(path: Path, streams: Mapping[str, Stream], metadata: Callable[[Hashes], Mapping[str, str]]) -> Path:
    """Writes a safetensors file, beside and renamed when whole.

    Args:
        streams: the tensors by name; each is asked for its blocks once.
        metadata: of what was written, the texts of the header. They stand before the tensors and are known after them:
            whatever the hashes, they must take equally many bytes.

    Raises:
        PalimpsestError: a stream gave more or fewer numbers than its shape has, or the file cannot be written.
    """
    return write_beside(path, lambda tmp: _fill(tmp, streams, metadata))


def _fill(path: Path, streams: Mapping[str, Stream], metadata: Callable[[Hashes], Mapping[str, str]]) -> None:
    # Wide types first, as the library that reads such files has them: then every tensor begins where its type may.
    order = sorted(streams, key=lambda name: (-streams[name].dtype.itemsize, name))
    none = {k: (str(s.dtype), list(s.shape), "0" * 64) for k, s in streams.items()}
    room = _header(order, streams, metadata(none))
    found: dict[str, tuple[str, list[int], str]] = {}
    with open(path, "wb") as f:
        f.write(room)
        for name in order:
            found[name] = (*none[name][:2], _poured(name, streams[name], f.write))
        f.seek(0)
        header = _header(order, streams, metadata({name: found[name] for name in streams}))
        assert len(header) == len(room)
        f.write(header)


def _poured(name: str, stream: Stream, write: Callable[[memoryview], object]) -> str:
    """Writes a tensor's blocks; the sha256 of their bytes."""
    h, numbers = hashlib.sha256(), 0
    for block in stream.blocks():
        bytes_ = raw_bytes(block.to(stream.dtype))
        write(bytes_)
        h.update(bytes_)
        numbers += block.numel()
    if numbers != math.prod(stream.shape):
        raise PalimpsestError(f"{name} was to have {math.prod(stream.shape)} numbers and got {numbers}.")
    return h.hexdigest()


def _header(order: list[str], streams: Mapping[str, Stream], texts: Mapping[str, str]) -> bytes:
    """The first bytes of the file: the header's length, and the header, filled up to whole words of 8 bytes."""
    entries: dict[str, object] = {"__metadata__": dict(texts)} if texts else {}
    at = 0
    for name in order:
        stream = streams[name]
        end = at + math.prod(stream.shape) * stream.dtype.itemsize
        entries[name] = {"dtype": NAMES[stream.dtype], "shape": list(stream.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
