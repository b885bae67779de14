"""Tensors by name that are read some rows at a time, whether they lie in memory or in files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from palimpsest.core.errors import Damaged
from palimpsest.core.files import refuse_pickle
from palimpsest.core.fingerprint import raw_bytes

ENTRIES = 2**18
"""Numbers of a block: merging three models, blocks of this size are twice as fast as whole tensors, since they stay in
the processor's cache."""
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Stored(Protocol):
    """Named tensors of a model. A tensor without axes counts as one row."""

    def names(self) -> Sequence[str]:
        """All of them, sorted."""
        ...

    def shape(self, name: str) -> torch.Size: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """(stop - start, ...) of a tensor, on the CPU."""
        ...


def blocks(shape: torch.Size, entries: int = ENTRIES) -> Iterator[tuple[int, int]]:
    """(start, stop) of the rows of a tensor, each block of at most `entries` numbers, or of one row that has more."""
    rows, of_row = (shape[0], math.prod(shape[1:])) if len(shape) else (1, 1)
    step = max(1, entries // max(1, of_row))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def digest_of(stored: Stored, dtype: torch.dtype | None = None) -> str:
    """The fingerprint of a model with these tensors (`core.fingerprint.digest`), read block by block.

    Args:
        dtype: the precision in which it would be loaded; None: that of the files.
    """
    h = hashlib.sha256()
    for name in stored.names():
        kind, shape = stored.dtype(name), stored.shape(name)
        wanted = dtype if dtype is not None and kind.is_floating_point else kind
        h.update(f"{name}|{tuple(shape)}|{wanted}|".encode())
        for start, stop in blocks(shape, 16 * ENTRIES):
            h.update(raw_bytes(stored.rows(name, start, stop).to(wanted)))
    return h.hexdigest()


class Memory:
    """Tensors in memory, such as a loaded model's (`core.fingerprint.tensors_of`)."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(sorted(tensors.items()))

    def names(self) -> Sequence[str]:
        return list(self._tensors)

    def shape(self, name: str) -> torch.Size:
        return self._tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        t = self._tensors[name].detach()
        return (t if t.ndim else t.reshape(1))[start:stop].cpu()


def bytes_of(stored: Stored) -> int:
    """Of all its tensors."""
    return sum(stored.shape(name).numel() * stored.dtype(name).itemsize for name in stored.names())


class Recent:
    """A model whose last rows are remembered, for several changes of it that are read side by side. They are not to be
    written into."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._asked, self._found = ("", 0, 0), torch.empty(0)

    def names(self) -> Sequence[str]:
        return self._stored.names()

    def shape(self, name: str) -> torch.Size:
        return self._stored.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._stored.dtype(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """In float32 where they have fewer digits, since a change is computed in it."""
        if self._asked != (name, start, stop):
            found = self._stored.rows(name, start, stop)
            kind = torch.promote_types(found.dtype, torch.float32) if found.is_floating_point() else found.dtype
            self._asked, self._found = (name, start, stop), found.to(kind)
        return self._found


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a tensor in a file.

    Args:
        file, key: where. start, stop: the rows, of the tensor as it lies there.
    """

    file: Path
    key: str
    start: int
    stop: int


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: pieces in files, one after another.

    Args:
        turned: it is the transpose of its one piece.
    """

    shape: torch.Size
    pieces: tuple[Piece, ...]
    turned: bool = False


class Files:
    """Tensors in safetensors files, which are read where they lie: nothing is mapped into memory or kept.

    Args:
        places: of each tensor by name. constants: tensors that no file holds.
    """

    def __init__(self, places: Mapping[str, Place], constants: Mapping[str, Tensor] | None = None) -> None:
        self.places = dict(sorted(places.items()))
        self._constants = Memory(constants or {})
        self._names = sorted({*self.places, *self._constants.names()})
        self._files = {piece.file: Tensors(piece.file) for p in self.places.values() for piece in p.pieces}

    def names(self) -> Sequence[str]:
        return self._names

    def shape(self, name: str) -> torch.Size:
        return self.places[name].shape if name in self.places else self._constants.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        if name not in self.places:
            return self._constants.dtype(name)
        piece = self.places[name].pieces[0]
        return self._files[piece.file].dtype(piece.key)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        if name not in self.places:
            return self._constants.rows(name, start, stop)
        place = self.places[name]
        if place.turned:
            (piece,) = place.pieces
            return self._files[piece.file].rows(piece.key, piece.start, piece.stop).T[start:stop].contiguous()
        found, at = [], 0
        for piece in place.pieces:
            first, last = max(start, at), min(stop, at + piece.stop - piece.start)
            if first < last:
                shift = piece.start - at
                found.append(self._files[piece.file].rows(piece.key, first + shift, last + shift))
            at += piece.stop - piece.start
        whole = found[0] if len(found) == 1 else torch.cat(found)
        return whole.reshape(stop - start, *place.shape[1:])


class Tensors:
    """The tensors of one safetensors file under the names that they have there.

    Raises:
        Damaged: no whole safetensors file, or a tensor of a type that no model is merged in.
    """

    def __init__(self, path: Path) -> None:
        refuse_pickle(path)
        try:
            with safe_open(path, framework="pt"):  # holds the header against the file's length
                pass
            with open(path, "rb") as f:
                length = int.from_bytes(f.read(8), "little")
                header = json.loads(f.read(length))
        except (SafetensorError, OSError, ValueError) as e:
            raise Damaged(f"{path} cannot be read as safetensors: {e}. It is truncated or damaged.") from e
        self.path, self.metadata, self._data = path, header.pop("__metadata__", {}), 8 + length
        if odd := [key for key, entry in header.items() if entry["dtype"] not in TYPES]:
            raise Damaged(
                f"{path} holds {odd[0]!r} as {header[odd[0]]['dtype']}, numbers of few bits that cannot be added up. "
                "Take the model in float32, float16 or bfloat16."
            )
        self._entries = {key: header[key] for key in sorted(header)}
        self._file: IO[bytes] = open(path, "rb", buffering=0)  # noqa: SIM115 (closed with this object)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def names(self) -> Sequence[str]:
        return list(self._entries)

    def shape(self, name: str) -> torch.Size:
        return torch.Size(self._entries[name]["shape"])

    def dtype(self, name: str) -> torch.dtype:
        return TYPES[self._entries[name]["dtype"]]

    def whole(self, name: str) -> Tensor:
        """All of a tensor."""
        shape = self.shape(name)
        return self.rows(name, 0, shape[0] if len(shape) else 1).reshape(shape)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Reads that much of the file, and no more."""
        shape, kind = self.shape(name), self.dtype(name)
        inner = shape[1:] if len(shape) else torch.Size(())
        found = torch.empty((stop - start, *inner), dtype=kind)
        size = math.prod(inner) * kind.itemsize
        self._file.seek(self._data + self._entries[name]["data_offsets"][0] + start * size)
        into = memoryview(raw_bytes(found)) if found.numel() else memoryview(b"")
        done = 0
        while done < len(into):
            n = self._file.readinto(into[done:])  # type: ignore[attr-defined]
            if not n:
                raise Damaged(f"{self.path} was cut short while it was read; get a fresh copy.")
            done += n
        return found
