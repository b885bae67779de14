"""UPCORE: outliers are left out of the forget set before any unlearner sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.host import Classifier
from palimpsest.core.method import ModelEdit
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.isolation_forest import isolation
from palimpsest.train.classify import all_seen, checked
from palimpsest.train.inner import system


@dataclass(frozen=True, kw_only=True)
class UPCORE(ModelEdit):
    """Picks the core of the forget set: the samples whose features are not easily isolated.

        s(x) = isolation score of h(x) among the features of the forget set
        core = the 1 - share samples with the lowest s;  patch = unlearner(core, retain)

    Args:
        share: of the forget set that is left out as outliers (the paper: 0.1), in [0, 1).
        unlearner, settings: the system that follows and its parameters, "steps=100 lr=0.01".
        trees: of the isolation forest.

    Cost: one forward for each sample to forget, and the unlearner.
    Differs from the paper: an image model's features instead of a language model's hidden states. What is left out is
        not kept either: it is in no set.
    Fails when: outliers are what must be forgotten; nothing guarantees that they follow the core.
    Source: Patil et al., "UPCORE", arXiv 2502.15082.

    Example:
        >>> patch = UPCORE(unlearner="gradient_ascent")(host, request, data=split)   # doctest: +SKIP
    """

    share: float = 0.1
    unlearner: str = "gradient_ascent"
    settings: str = ""
    trees: int = 100

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share < 1:
            raise BadRequest(f"share is {self.share}; it is the share of the forget set left out, from 0 to below 1.")

    def run(self, host: Classifier, request: Request, *, data: Material, rng: torch.Generator, trace: Trace) -> Patch:
        unlearner = system(self.unlearner, self.settings, verb="unlearn", but=self.id)
        split = checked(host, data, retain=False)
        scores = isolation(all_seen(host, split["forget"])[0], trees=self.trees, generator=rng)
        kept = max(1, round(len(scores) * (1 - self.share)))
        core = Material({**split, "forget": split["forget"][scores.argsort(stable=True)[:kept].sort().values]})
        inner = Trace(progress=trace.progress)
        patch = unlearner(host, request, data=core, seed=rng.initial_seed(), trace=inner)
        trace.log.extend(inner.log)
        return replace(patch, base="", provenance={})
