"""What an audit knows: numbers of every row (a picture, a sample) under every model; and what reads them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.errors import BadRequest
from palimpsest.core.fingerprint import tensors_of
from palimpsest.core.patch import Patch
from palimpsest.core.reading import Evaluator, Reading

PATCH, PICTURES = "patch", "pictures"  # needs that no measure meets


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What an audit collected, once, for all probes.

    Args:
        plan: what was asked; a value of its own for each subject.
        measures: "set/model/name" -> one number, one row of bits or one vector for each row of the set ("set/name"
            where no model has a part in it). Sets and names hold no slash, models may. Readings are computed from
            what is kept, rounded as it is kept.
        gallery: set -> (n, 3, H, W) uint8, where the rows are pictures that were drawn.
        evaluators: who read them, by name.
        patch: the change, where it is known as one.
        base: of each changed tensor of the untouched model, (shape, Frobenius norm).
        cost: seconds, forwards (rows through each part), pictures (rows looked at), peak_bytes.
    """

    subject: ClassVar[str]
    plan: Any
    measures: Mapping[str, Tensor]
    gallery: Mapping[str, Tensor] = field(default_factory=dict)
    evaluators: Mapping[str, Evaluator] = field(default_factory=dict)
    patch: Patch | None = None
    base: Mapping[str, tuple[tuple[int, ...], float]] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *path: str) -> Tensor:
        """A measure by its path: set, model, name."""
        return self.measures["/".join(path)]

    def has(self, *path: str) -> bool:
        return "/".join(path) in self.measures

    def holds(self, need: str) -> bool:
        """Whether a probe's need is met: a measure of that name, the patch, or the pictures themselves."""
        if need == PATCH:
            return self.patch is not None
        return bool(self.gallery) if need == PICTURES else any(parts(key)[2] == need for key in self.measures)

    def kept(self) -> dict[str, Any]:
        """The measures that a receipt holds, as JSON: numbers, and of bits the columns that are set."""
        return {k: _plain(m) for k, m in self.measures.items() if not _is_vectors(m)}

    def vectors(self) -> dict[str, Tensor]:
        """The measures that lie in a file beside the receipt: (n, d) float32."""
        return {k: m for k, m in self.measures.items() if _is_vectors(m)}


class Probe(ABC):
    """One kind of reading: a pure function of evidence.

    Args:
        name: what it is called. makes: the names of its readings.
        subjects: whose evidence it reads. needs: the names of the measures that it reads, `PATCH` or `PICTURES`; where
            all of them are kept, `verify` computes the readings again from the receipt alone.
    """

    name: ClassVar[str]
    makes: ClassVar[tuple[str, ...]]
    subjects: ClassVar[tuple[str, ...]]
    needs: ClassVar[tuple[str, ...]]

    @abstractmethod
    def run(self, evidence: Any) -> list[Reading]:
        """Readings of collected evidence; draws nothing, deterministic."""


def parts(key: str) -> tuple[str, str, str]:
    """(set, model, name) of a measure's key; the model is "" where none has a part in it."""
    which, _, rest = key.partition("/")
    model, _, name = rest.rpartition("/")
    return which, model, name


def unkept(kept: Mapping[str, Any], evaluators: Mapping[str, Evaluator]) -> dict[str, Tensor]:
    """The inverse of `Evidence.kept`.

    Raises:
        ValueError, IndexError, TypeError: rows of different kinds, or a class that the judge does not have.
    """
    return {key: _tensor(rows, key, evaluators) for key, rows in kept.items()}


def rounded(values: Tensor, digits: int) -> Tensor:
    """float64, to the digits that a receipt keeps."""
    return torch.round(values.double(), decimals=digits)


def norms(host: Any, patch: Patch | None) -> dict[str, tuple[tuple[int, ...], float]]:
    """(shape, Frobenius norm) of each tensor of a host that a patch changes."""
    if patch is None or not hasattr(host, "root"):
        return {}
    tensors = tensors_of(host.root)
    return {n: (tuple(tensors[n].shape), float(tensors[n].detach().float().norm())) for n in patch.deltas}


def refuse_broken(models: Mapping[str, Any]) -> None:
    """Looks at every weight once, before anything is drawn or asked.

    Args:
        models: what each is called, in words -> a host, or a Patch.

    Raises:
        BadRequest: a weight is NaN or infinite: nothing could be read from what such a model gives.
    """
    for called, model in models.items():
        held = _weights(model)
        broken = [name for name, t in held.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
        if broken:
            raise BadRequest(
                f"{len(broken)} tensors of the {called} hold NaN or infinity (first {broken[0]!r}): nothing can be "
                "measured on it. Load it in another precision, or get whole weights."
            )


def _weights(model: Any) -> Mapping[str, Tensor]:
    if isinstance(model, Patch):
        words = {f"{word} ({n})": t for word, meant in model.words.items() for n, t in meant.vectors.items()}
        return words | {f"{name} ({k})": t for name, d in model.deltas.items() for k, t in d.tensors().items()}
    return tensors_of(model.root) if hasattr(model, "root") else {}


def _is_vectors(measure: Tensor) -> bool:
    return measure.dim() == 2 and measure.is_floating_point()


def _plain(measure: Tensor) -> list[Any]:
    if measure.dtype == torch.bool:
        return [row.nonzero().flatten().tolist() for row in measure]
    return measure.tolist()


def _tensor(rows: list[Any], key: str, evaluators: Mapping[str, Evaluator]) -> Tensor:
    model = parts(key)[1]
    if model not in evaluators or not isinstance(next(iter(rows), 0), list):
        return torch.tensor(rows, dtype=torch.float64)
    flags = torch.zeros(len(rows), len(evaluators[model].classes), dtype=torch.bool)
    for i, row in enumerate(rows):
        if any(c < 0 for c in row):
            raise ValueError(f"{key} has a class below 0")
        flags[i, row] = True
    return flags
