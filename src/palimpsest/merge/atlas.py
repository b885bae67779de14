"""aTLAS: a coefficient for each change and each tensor, learnt from a few pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.change import Part
from palimpsest.core.combine import Combine
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, NonNegative, Positive
from palimpsest.core.host import Classifier
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.stored import Stored
from palimpsest.core.trace import Trace
from palimpsest.ops.merging import changed
from palimpsest.train.classify import cross_entropy, stream
from palimpsest.train.loop import Gradients, clipped, minimise
from palimpsest.train.trained import Trained


@dataclass(frozen=True, kw_only=True)
class ATLAS(Combine):
    """Scales every tensor of every change by a number of its own, which a few pictures of the new task choose.

        W'_j = W_j + sum_i  c_ij (W_ij - W_j),    from c = 0, AdamW on  mean over few of  cross-entropy(W', x, y)

    Pictures without labels are answered as surely as possible instead: the loss is the mean entropy of the answers.

    Args:
        steps: of the optimiser (in the paper ten passes of at least ten). batch: pictures a step.
        lr: of the coefficients; it falls to 0 along a cosine.
        decay: weight decay of the coefficients.

    Needs: `few`, pictures all of which have labels, or none.
    Cost: a forward with gradients for each picture of a step; memory of all changes at full size.
    Differs from the paper: pictures are not augmented, and the last step counts, where the authors' code keeps the pass
        that was best on the test pictures. Running means of batch norms stay the model's; they have no gradient.
    Fails when: pictures without labels are few and the answers wrong, so that they become surely wrong.
    Source: Zhang et al., "Knowledge Composition using Task Vectors with Learned Anisotropic Scaling", NeurIPS 2024,
        arXiv 2407.02880, and its code, github.com/fredzzhang/atlas.

    Example:
        >>> patch = ATLAS()([cats, dogs], host, data={"few": pictures})    # doctest: +SKIP
    """

    steps: Count = 100
    batch: Count = 128
    lr: Positive = 0.1
    decay: NonNegative = 0.1

    quick: ClassVar[dict[str, Any]] = {"steps": 2, "batch": 8}

    card = Card(
        name="aTLAS",
        title="Knowledge Composition using Task Vectors with Learned Anisotropic Scaling",
        year=2024,
        paper="https://arxiv.org/abs/2407.02880",
        family="learnt weights",
        needs="Classifier",
        reads=("few",),
        claim="From few pictures, learnt coefficients of known changes generalise better than one for all, or none.",
    )

    def survey(
        self, parts: Sequence[Part], base: Stored, host: Any, *, data: Material, rng: torch.Generator, trace: Trace
    ) -> Mapping[str, Sequence[float]]:
        if host is None:
            raise BadRequest(f"{self.card.name} learns with the model; load it (no --stream).")
        few, known = data["few"], {n for n, _ in host.root.named_parameters()}
        names = [n for n in changed(parts) if n in known]
        if not len(few) or not names:
            raise BadRequest(f"{self.card.name} learns from pictures what to take of changes; one of both is empty.")
        trained, seed = Trained(host.root, names), rng.initial_seed()
        moves = {n: _whole(parts, n, t) for n, t in trained.old.items()}
        coefficients = torch.zeros(len(moves), len(parts), device=host.device).requires_grad_(True)

        def scaled() -> dict[str, Tensor]:
            by_name = zip(trained.old.items(), coefficients, strict=True)
            return {n: old.detach().float() + torch.einsum("i,i...->...", c, moves[n]) for (n, old), c in by_name}

        def loss(k: int) -> Tensor:
            rows = stream(len(few), min(self.batch, len(few)), seed, k, "few")
            with trained.holding(scaled()):
                return _loss(host, few, rows)

        def gradient(k: int, found: Sequence[Gradients]) -> Gradients:
            return clipped(found[0], 1.0)

        with trained.frozen():
            minimise(
                {"coefficients": coefficients},
                loss,
                steps=self.steps,
                optimiser=torch.optim.AdamW([coefficients], lr=self.lr, weight_decay=self.decay),
                trace=trace,
                run={**self.named(), "seed": seed, "parts": [p.sha256() for p in parts]},
                gradient=gradient,
                schedule=lambda k, total: (1 + math.cos(math.pi * k / total)) / 2,
            )
        learnt = coefficients.detach().cpu().tolist()
        return dict(zip(moves, learnt, strict=True)) | {"": [0.0] * len(parts)}

    def factors(self, name: str, surveyed: Mapping[str, Sequence[float]]) -> Sequence[float]:
        return surveyed.get(name, surveyed[""])


def _whole(parts: Sequence[Part], name: str, like: Tensor) -> Tensor:
    """(n, ...) a tensor of all changes."""
    rows = like.shape[0] if like.ndim else 1
    return torch.stack([p.rows(name, like.shape, 0, rows).reshape(like.shape) for p in parts]).to(like.device)


def _loss(host: Classifier, few: Pictures, rows: Tensor) -> Tensor:
    """Cross-entropy where labels are known, else the mean entropy of the answers."""
    logits = host.logits(few.pixels(rows))
    if len(few.labels):
        return cross_entropy(logits, few.labels[rows])
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1).mean()
