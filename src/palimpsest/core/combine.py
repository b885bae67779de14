"""Systems that make one patch of several: sums, averages, votes, learnt weights."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from palimpsest.core import delta as deltas_of
from palimpsest.core.change import Change, Part, built, fingerprint, stored
from palimpsest.core.delta import Delta, Dense, LowRank, Rows, Sparse
from palimpsest.core.errors import BadRequest, Unsupported, WrongBase
from palimpsest.core.fingerprint import holds
from palimpsest.core.host import Host
from palimpsest.core.method import Method
from palimpsest.core.patch import Form, Patch
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.stored import Recent, Stored, digest_of
from palimpsest.core.streams import Stream
from palimpsest.core.trace import Trace
from palimpsest.core.watched import Told
from palimpsest.core.words import united


@dataclass(frozen=True, kw_only=True)
class Combine(Method, ABC):
    """A system that makes one patch of several changes of one base. A tensor that a change leaves out counts as zero;
    words are brought along.

    Attributes:
        passes: how often it computes the blocks of all changes, those of its survey and the last; for forecasts.
    """

    passes: ClassVar[int] = 1

    def survey(
        self, parts: Sequence[Part], base: Stored, host: Any, *, data: Material, rng: torch.Generator, trace: Trace
    ) -> Any:
        """What is needed over all tensors before the first is combined (thresholds, coefficients); here, nothing.

        Args:
            base: the tensors of the untouched model. host: the model; None where only its files were given.
        """
        return None

    def factors(self, name: str, surveyed: Any) -> Sequence[float] | None:
        """One factor for each change, where the rule is a weighted sum of this tensor: low-rank changes then stay so.

        None, as here: the rule needs all entries, and `block` decides.
        """
        return None

    def block(self, name: str, start: int, deltas: Tensor, surveyed: Any) -> Tensor:
        """(rows, ...) float32 of the changes (n, rows, ...) of some rows of one tensor, from row `start` on; entry by
        entry, so that it does not matter how many rows are seen at once. Asked where `factors` gives none."""
        raise NotImplementedError(f"{type(self).__name__} has no rule for single entries")

    @final
    def __call__(
        self,
        parts: Sequence[Part],
        host: Any,
        *,
        data: Mapping[str, Pictures] | None = None,
        beside: Mapping[str, Host] | None = None,
        seed: int = 0,
        trace: Trace | None = None,
        out: str | Path | None = None,
    ) -> Patch:
        """Combines changes.

        Args:
            parts: of the host's own weights, patches or whole models (`core.change.Change`); at least one.
            host: the model that they were made for, which is unchanged afterwards; or its tensors in files.
            out: a file that the patch is written to while it is computed; the patch then stays in it.

        Raises:
            WrongBase: a patch was made for another model, or changes a tensor that the model does not have.
            Unsupported: a patch acts while the model runs.
            BadRequest: there is nothing to combine, or two bring one word with different meanings.
            Damaged: a delta does not fit its tensor.

        Cost: some rows of one tensor of all changes at a time; with `out` no more than that is held.
        """
        material, trace = Material(data or {}, beside or {}), trace or Trace()
        live = host if hasattr(host, "root") else None
        base, model = stored(host), fingerprint(host, trace)
        self._agree(parts, base, model, live, getattr(host, "name", "this model"))
        words = united([p.words for p in parts])
        guard = nullcontext(torch.Generator().manual_seed(seed))
        if live is not None:
            guard = self.guarded(live, material, seed=seed, trace=trace)
        with guard as rng:
            recent = Recent(base)  # whole models are held against the same rows of it
            near = [p.beside(recent) if isinstance(p, Change) and p.before is base else p for p in parts]
            entries = sum(base.shape(name).numel() for p in parts for name in p.names())
            told = trace.reading("merging, MB of changes", 4 * entries * self.passes)  # blocks are float32
            read = [Told(p, told) for p in near]
            surveyed = self.survey(read, base, live, data=material, rng=rng, trace=trace)
            names = sorted({n for p in parts for n in p.names()})
            forms = {n: f for n in names if (f := self._combined(n, read, base, surveyed)) is not None}
            provenance = {
                "method": self.id,
                "name": self.card.name,
                "parameters": self.parameters(),
                "seed": seed,
                "combined": [{"sha256": _identity(p, trace), "provenance": dict(p.provenance)} for p in parts],
            }
            patch = built(Patch(base=model, words=words, provenance=provenance), forms, out)
            told(4 * entries * self.passes)  # sums of low-rank changes compute no blocks
            return patch

    def _agree(self, parts: Sequence[Part], base: Stored, model: str, live: Any, name: str) -> None:
        """Raises where the changes are not all of this model."""
        if not parts:
            raise BadRequest("There is no patch to combine; give at least one.")
        for part in parts:
            if isinstance(part, Patch):
                if part.hooks:
                    raise Unsupported(
                        f"{part.hooks[0].id} acts while the model runs; only changes of weights can be combined."
                    )
                if part.base != model and not _held(base, live, part.base):
                    raise WrongBase(f"A patch was made for the model {part.base[:12]}, but {name} is {model[:12]}.")
            elif isinstance(part, Change) and part.before is not base and fingerprint(part.before) != model:
                raise WrongBase(f"{part.name} is held against another model than {name}.")
            held = set(base.names())
            if lost := sorted(n for n in part.names() if n not in held):
                raise WrongBase(f"A patch changes {lost[0]!r}, which {name} does not have.")

    def _combined(self, name: str, parts: Sequence[Part], base: Stored, surveyed: Any) -> Form | None:
        """One tensor's change, about to be computed; None where it stays."""
        shape = base.shape(name)
        factors = self.factors(name, surveyed)
        if factors is None:

            def voted(start: int, stop: int) -> Tensor:
                stacked = torch.stack([p.rows(name, shape, start, stop) for p in parts])
                return self.block(name, start, stacked, surveyed)

            return Dense, {"value": Stream.by_rows(torch.float32, shape, voted)}
        live = [(p, f) for p, f in zip(parts, factors, strict=True) if f != 0 and name in p.names()]
        if not live:
            return None
        if (small := _summed(name, live, shape)) is not None:
            return type(small), {k: Stream.of(t) for k, t in small.tensors().items()}

        def added(start: int, stop: int) -> Tensor:
            first, *rest = live
            total = first[1] * first[0].rows(name, shape, start, stop)
            for part, factor in rest:
                total.add_(part.rows(name, shape, start, stop), alpha=factor)
            return total

        return Dense, {"value": Stream.by_rows(torch.float32, shape, added)}


def _identity(part: Part, trace: Trace) -> str:
    return part.sha256(trace) if isinstance(part, Change) else part.sha256()


def _held(base: Stored, live: Any, wanted: str) -> bool:
    """Whether a model is the one with this fingerprint in another precision (`core.fingerprint.holds`)."""
    return holds(live.root, wanted) if live is not None else digest_of(base, torch.float32) == wanted


def _summed(name: str, live: Sequence[tuple[Part, float]], shape: torch.Size) -> Delta | None:
    """A weighted sum in the form that the changes have; None where they have several, or it would be too large."""
    deltas = [part.delta(name) for part, _ in live]
    kinds = {type(delta) for delta in deltas}
    if len(kinds) != 1 or not kinds < {LowRank, Rows, Sparse}:
        return None
    total: Delta | None = None
    for delta, (_, factor) in zip(deltas, live, strict=True):
        assert delta is not None
        delta.fits(shape)
        scaled = delta.scaled(factor)
        total = scaled if total is None else deltas_of.add(total, scaled, shape)
    assert total is not None
    if isinstance(total, LowRank):
        return total if total.rank() <= min(total.outline()) else None
    return total if total.tensors()["index"].numel() < shape.numel() else None
