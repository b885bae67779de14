"""UPCORE: outliers are left out of the forget set before any unlearner sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.declared import Within
from palimpsest.core.fields import Count
from palimpsest.core.host import Classifier
from palimpsest.core.method import ModelEdit, Work
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.isolation_forest import isolation
from palimpsest.train.classify import all_seen, checked
from palimpsest.unlearn.gradient_ascent import GradientAscent


@dataclass(frozen=True, kw_only=True)
class UPCORE(ModelEdit):
    """Picks the core of the forget set: the samples whose features are not easily isolated.

        s(x) = isolation score of h(x) among the features of the forget set
        core = the 1 - share samples with the lowest s;  patch = unlearner(core, retain)

    Args:
        share: of the forget set that is left out as outliers (the paper: 0.1), in [0, 1).
        unlearner: the system that follows, with its own parameters.
        trees: of the isolation forest.

    Cost: one forward for each sample to forget, and the unlearner.
    Differs from the paper: an image model's features instead of a language model's hidden states. What is left out is
        not kept either: it is in no set.
    Fails when: outliers are what must be forgotten; nothing guarantees that they follow the core.
    Source: Patil et al., "UPCORE", arXiv 2502.15082.

    Example:
        >>> patch = UPCORE(unlearner=GradientAscent(epochs=2))(host, request, data=material)   # doctest: +SKIP
    """

    share: Annotated[float, Within(least=0, most=0.99)] = 0.1
    unlearner: ModelEdit = GradientAscent()
    trees: Count = 100

    quick: ClassVar[Mapping[str, Any]] = {"unlearner": GradientAscent(**GradientAscent.quick), "trees": 5}

    card = Card(
        name="UPCORE",
        title="UPCORE: Utility-Preserving Coreset Selection for Balanced Unlearning",
        year=2025,
        paper="https://arxiv.org/abs/2502.15082",
        family="data selection",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Any unlearner deletes as much and damages less on a forget set without its outliers.",
    )

    def planned(self, data: Material) -> Work | None:
        return self.unlearner.planned(Material({**data, "forget": data["forget"][: self._kept(data)]}))

    def _kept(self, data: Material) -> int:
        return max(1, round(len(data["forget"]) * (1 - self.share)))

    def run(self, host: Classifier, request: Request, *, data: Material, rng: torch.Generator, trace: Trace) -> Patch:
        split = checked(host, data, retain=False)
        scores = isolation(all_seen(host, split["forget"])[0], trees=self.trees, generator=rng)
        rows = scores.argsort(stable=True)[: self._kept(data)].sort().values
        core = Material({**split, "forget": split["forget"][rows]})
        with trace.part("unlearner") as part:
            patch = self.unlearner(host, request, data=core, seed=rng.initial_seed(), trace=part)
        return replace(patch, base="", provenance={})
