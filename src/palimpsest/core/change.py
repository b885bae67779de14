"""What was changed between two models of one architecture, read some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from palimpsest.core.delta import Delta, Dense, Sparse
from palimpsest.core.errors import Unsupported
from palimpsest.core.fingerprint import tensors_of
from palimpsest.core.patch import Form, Patch, in_file
from palimpsest.core.stored import Memory, Stored, blocks, bytes_of, digest_of
from palimpsest.core.streams import Stream
from palimpsest.core.trace import Trace
from palimpsest.core.watched import Watched
from palimpsest.core.words import Word


class Part(Protocol):
    """A change that can be combined with others of the same model: a `Patch`, or a `Change`."""

    @property
    def words(self) -> Mapping[str, Word]: ...

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    def sha256(self) -> str: ...

    def names(self) -> Collection[str]:
        """The tensors that it may change."""
        ...

    def delta(self, name: str) -> Delta | None:
        """The change of a tensor in the form that it has; None where it is only known by its rows."""
        ...

    def rows(self, name: str, shape: torch.Size, start: int, stop: int) -> Tensor:
        """(stop - start, ...) of the change of a tensor; zeros where it does not change it."""
        ...


def stored(model: Any) -> Stored:
    """The tensors of a model: a host, or what is read from files already."""
    return Memory(tensors_of(model.root)) if hasattr(model, "root") else model


def fingerprint(model: Any, trace: Trace | None = None) -> str:
    """sha256 of a model's tensors. Cost: of files a pass over their bytes, of which the trace is told."""
    if hasattr(model, "fingerprint"):
        return model.fingerprint()
    return digest_of(Watched(model, (trace or Trace()).reading("fingerprint of the model, MB", bytes_of(model))))


@dataclass(frozen=True, kw_only=True)
class Change:
    """A whole model as a change of another.

    Args:
        before, after: the tensors of both.
        name: of the edited model, in words.

    Raises:
        Unsupported: they have different tensors.
    """

    before: Stored
    after: Stored
    name: str = ""
    words: Mapping[str, Word] = field(default_factory=dict)

    def __post_init__(self) -> None:
        old, new = (set(m.names()) for m in (self.before, self.after))
        odd = sorted(old ^ new)
        if not odd:
            odd = [n for n in sorted(old) if self.before.shape(n) != self.after.shape(n)]
        if odd:
            sizes = [str(tuple(m.shape(odd[0]))) if odd[0] in m.names() else "none" for m in (self.before, self.after)]
            raise Unsupported(
                f"{self.name or 'The edited model'} is no edit of that model: {len(odd)} tensors differ in name or "
                f"shape, first {odd[0]!r} ({sizes[1]}, there {sizes[0]}). Give models of one architecture."
            )

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {"method": "diff", "edited": self.name}

    def sha256(self, trace: Trace | None = None) -> str:
        """The fingerprint of the edited model, which with the base is the change; computed once."""
        if "_fingerprint" not in vars(self):
            what = f"fingerprint of {self.name or 'the edited model'}, MB"
            read = (trace or Trace()).reading(what, bytes_of(self.after))
            vars(self)["_fingerprint"] = digest_of(Watched(self.after, read))
        return vars(self)["_fingerprint"]

    def names(self) -> Collection[str]:
        """Those of fractions: whole numbers (places, counters) stay the base's."""
        return [n for n in self.before.names() if self.before.dtype(n).is_floating_point]

    def delta(self, name: str) -> None:
        return None

    def rows(self, name: str, shape: torch.Size, start: int, stop: int) -> Tensor:
        return self.after.rows(name, start, stop).float() - self.before.rows(name, start, stop).float()

    def beside(self, before: Stored) -> Change:
        """The same change, its model read through another view of the same tensors."""
        return Change(before=before, after=self.after, name=self.name, words=self.words)


def diff(base: Any, edited: Any, *, name: str = "", out: str | Path | None = None, trace: Trace | None = None) -> Patch:
    """The patch that turns one model into another of the same architecture, whoever edited it.

    Args:
        base, edited: hosts, or tensors in files.
        name: of the edited model, for the provenance; its host's own where not given.
        out: the file that the patch is written to while both are read; it then holds a block at a time.
        trace: is told how far reading is, in megabytes.

    Raises:
        Unsupported: the two have different tensors.

    Cost: both are read twice, once more for the fingerprint of files; written are 4 bytes for each number of a tensor
    of which a third or more changed, 12 for each changed number of others.
    """
    before, after, name = stored(base), stored(edited), name or getattr(edited, "name", "")
    trace = trace or Trace()
    Change(before=before, after=after, name=name)  # same tensors
    patch = Patch(base=fingerprint(base, trace), provenance={"method": "diff", "edited": name})
    both = _watched(before, after, trace.reading("comparing, MB", bytes_of(before) + bytes_of(after)))
    moved = {n: sum(len(index) for index, _ in _moved(*both, n)) for n in before.names()}
    sizes = {n: before.shape(n).numel() * (before.dtype(n).itemsize + after.dtype(n).itemsize) for n in moved}
    passes = {n: 2 if _sparse(before.shape(n), m) else 1 for n, m in moved.items() if m}
    both = _watched(before, after, trace.reading("writing, MB read", sum(sizes[n] * k for n, k in passes.items())))
    return built(patch, {n: _form(*both, n, moved[n]) for n in passes}, out)


def _watched(before: Stored, after: Stored, read: Callable[[int], None]) -> tuple[Stored, Stored]:
    return Watched(before, read), Watched(after, read)


def built(patch: Patch, forms: Mapping[str, Form], out: str | Path | None) -> Patch:
    """A patch with these deltas, in memory or streamed to a file and left there."""
    if out is None:
        deltas = {name: cls(**{k: s.whole() for k, s in held.items()}) for name, (cls, held) in forms.items()}
        return Patch(base=patch.base, deltas=deltas, hooks=patch.hooks, words=patch.words, provenance=patch.provenance)
    return in_file(patch.save(out, streamed=forms))


def _moved(before: Stored, after: Stored, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Block by block (places among the flattened tensor, changes there)."""
    shape = before.shape(name)
    size = shape[1:].numel() if len(shape) else 1
    for start, stop in blocks(shape):
        old, new = (m.rows(name, start, stop).reshape(-1) for m in (before, after))
        change = new.float() - old.float()
        index = change.nonzero().squeeze(1)
        yield index + start * size, change[index]


def _sparse(shape: torch.Size, moved: int) -> bool:
    return moved * 3 < shape.numel()


def _form(before: Stored, after: Stored, name: str, moved: int) -> Form:
    """Sparse where less than a third of the numbers moved, else dense."""
    shape, count = before.shape(name), torch.Size((moved,))
    if _sparse(shape, moved):
        return Sparse, {
            "index": Stream(torch.int64, count, lambda: (index for index, _ in _moved(before, after, name))),
            "value": Stream(torch.float32, count, lambda: (value for _, value in _moved(before, after, name))),
        }

    def rows(start: int, stop: int) -> Tensor:
        return after.rows(name, start, stop).float() - before.rows(name, start, stop).float()

    return Dense, {"value": Stream.by_rows(torch.float32, shape, rows)}
