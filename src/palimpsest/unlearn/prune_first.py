"""Prune first, then unlearn: any unlearner, on the model's largest weights only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.declared import Within
from palimpsest.core.host import Classifier
from palimpsest.core.method import ModelEdit, Work
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.saliency import salient
from palimpsest.train.classify import checked
from palimpsest.train.scratch import changes, copied, recalibrate
from palimpsest.unlearn.finetune import FineTune


@dataclass(frozen=True, kw_only=True)
class PruneFirst(ModelEdit):
    """One-shot magnitude pruning over all layers together, then another system on what is left.

        mask = |w| >= the quantile that leaves 1 - sparsity;  w = mask * unlearner(mask * w0)

    Batch norms are measured afresh on retained data after pruning; the masks hold while the unlearner works.

    Args:
        sparsity: share of the weights with two axes or more that become zero, in [0, 1).
        unlearner: the system that follows, with its own parameters.

    Cost: ten forwards of 256 pictures, and the unlearner.
    Differs from the paper: the paper prunes and then trains the sparse model before anything is forgotten, at 95 %;
        here a model that was trained dense is pruned as it stands, so that much sparsity needs much retraining.
    Fails when: the unlearner is too short to repair what pruning took.
    Source: Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023, arXiv 2304.04934.

    Example:
        >>> patch = PruneFirst(unlearner=FineTune(epochs=1))(host, request, data=material)   # doctest: +SKIP
    """

    sparsity: Annotated[float, Within(least=0, most=0.99)] = 0.95
    unlearner: ModelEdit = FineTune()

    quick: ClassVar[Mapping[str, Any]] = {"unlearner": FineTune(**FineTune.quick)}

    card = Card(
        name="Prune first, then unlearn",
        title="Model Sparsity Can Simplify Machine Unlearning",
        year=2023,
        paper="https://arxiv.org/abs/2304.04934",
        family="sparsity",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Sparsity closes the gap between approximate unlearning and retraining.",
    )

    def planned(self, data: Material) -> Work | None:
        return self.unlearner.planned(data)

    def run(self, host: Classifier, request: Request, *, data: Material, rng: torch.Generator, trace: Trace) -> Patch:
        split, seed = checked(host, data), rng.initial_seed()
        student = copied(host)
        pruned = [(module, "weight") for module in student.root.modules() if _prunable(module)]
        masks = salient({str(i): _weight(module) for i, (module, _) in enumerate(pruned)}, 1 - self.sparsity)
        for i, (module, key) in enumerate(pruned):
            prune.custom_from_mask(module, key, masks[str(i)])
        recalibrate(student, split["retain"], seed=seed)
        with trace.part("unlearner") as part:
            self.unlearner(student, request, data=split, seed=seed, trace=part).fuse(student)
        for module, key in pruned:
            prune.remove(module, key)
            setattr(module, key, nn.Parameter(_weight(module).detach(), requires_grad=False))
        return Patch(base="", deltas=changes(host, student))


def _prunable(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), nn.Parameter) and _weight(module).ndim >= 2


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight
