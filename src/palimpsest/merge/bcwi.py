"""BCWI: between a model and its update, so that fewer answers that were right become wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.change import Part
from palimpsest.core.combine import Combine
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, Positive, Share
from palimpsest.core.host import Classifier
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.stored import Stored
from palimpsest.core.trace import Trace
from palimpsest.ops.merging import mean_change
from palimpsest.train.classify import picked
from palimpsest.train.gradients import gradients_of


class _Fisher(NamedTuple):
    old: dict[str, Tensor]
    new: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class BCWI(Combine):
    """Interpolates between the model in use and its update, so that the update keeps most of what users rely on.

        W' = ((1 - alpha) F_old W + alpha F_new W_new) / ((1 - alpha) F_old + alpha F_new)

    The model is the old one, the changes lead to the new one; several are averaged first (a soup of updates). F is 1,
    or the diagonal Fisher information of the old model on its own pictures, and of the new one on the new pictures:

        F = mean over x of (d log p(y | x) / d w)^2,    y drawn from p(. | x)

    Args:
        alpha: 0 is the old model, 1 the new one.
        importance: "equal", or "fisher".
        samples: pictures from which each Fisher information is estimated, at most.
        floor: the least Fisher information of a weight, so that one that matters to neither is interpolated evenly.

    Needs: with importance="fisher" a classifier and pictures, `old` and `new`; their labels are not read.
    Cost: one pass over what is changed; with "fisher" a forward and a backward for each picture, memory of two models.
    Differs from the paper: tensors that are no parameters (running statistics) are always interpolated evenly.
    Fails when: the update was not trained from the old model, so that nothing good lies between the two.
    Source: Schumann et al., "Backward Compatibility During Data Updates by Weight Interpolation", EACL 2024, arXiv
        2301.10546; no code of the authors was found. The floor: Matena and Raffel, arXiv 2111.09832.

    Example:
        >>> update = BCWI(alpha=0.5)([new], host)    # doctest: +SKIP
    """

    alpha: Share = 0.5
    importance: Literal["equal", "fisher"] = "equal"
    samples: Count = 500
    floor: Positive = 1e-6

    quick: ClassVar[dict[str, Any]] = {"importance": "fisher", "samples": 4}

    card = Card(
        name="BCWI",
        title="Backward Compatibility During Data Updates by Weight Interpolation",
        year=2024,
        paper="https://arxiv.org/abs/2301.10546",
        family="mean",
        needs="Host",
        reads=("old?", "new?"),
        claim="Fewer answers turn from right to wrong, at the new model's accuracy and at no cost of inference.",
    )

    def survey(
        self, parts: Sequence[Part], base: Stored, host: Any, *, data: Material, rng: torch.Generator, trace: Trace
    ) -> tuple[int, _Fisher | None]:
        if self.importance == "equal":
            return len(parts), None
        if not isinstance(host, Classifier) or not all(len(data.get(name, ())) for name in ("old", "new")):
            raise BadRequest(
                f"{self.card.name} with importance fisher needs a loaded classifier and pictures, old and new; give "
                "both, or take importance equal."
            )
        old = self._information(host, data["old"], rng, trace, "importance to the old model")
        with mean_change(parts, base).applied(host, force=True):
            new = self._information(host, data["new"], rng, trace, "importance to the new model")
        return len(parts), _Fisher(old, new)

    def factors(self, name: str, surveyed: tuple[int, _Fisher | None]) -> Sequence[float] | None:
        n, fisher = surveyed
        return [self.alpha / n] * n if fisher is None or name not in fisher.old else None

    def block(self, name: str, start: int, deltas: Tensor, surveyed: tuple[int, _Fisher | None]) -> Tensor:
        fisher = surveyed[1]
        assert fisher is not None
        old, new = (f[name][start : start + deltas.shape[1]].clamp(min=self.floor) for f in fisher)
        return self.alpha * new / ((1 - self.alpha) * old + self.alpha * new) * deltas.mean(0)

    def _information(
        self, host: Classifier, pictures: Pictures, rng: torch.Generator, trace: Trace, what: str
    ) -> dict[str, Tensor]:
        """The diagonal Fisher information of the model as it stands, by parameter."""
        seen = picked(pictures, self.samples, rng)
        names = [name for name, _ in host.root.named_parameters()]
        found: dict[str, Tensor] = {}
        for k in range(len(seen)):
            at = float(torch.rand(1, generator=rng))
            for name, g in gradients_of(host.root, names, [_surprise(host, seen.pixels(slice(k, k + 1)), at)]).items():
                square = g.float().square() / len(seen)
                found[name] = found[name] + square if name in found else square
            trace.tell(what, k + 1, len(seen))
        return {name: f.cpu() for name, f in found.items()}


def _surprise(host: Classifier, image: Tensor, at: float) -> Callable[[], Tensor]:
    """-log p of the answer at this quantile of the model's own answers to a picture."""

    def of(images: Tensor) -> Tensor:
        logs = host.logits(images).log_softmax(1)[0]
        drawn = int((logs.detach().double().exp().cumsum(0) < at).sum())
        return -logs[min(drawn, len(logs) - 1)]

    return partial(of, image)
