"""The base of every system that is one training: its patch is what the training left."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from palimpsest.core.concept import Request
from palimpsest.core.method import ModelEdit, Work
from palimpsest.core.patch import Hook, Patch
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.parts import parameters
from palimpsest.train.training import Fitted, Training


@dataclass(frozen=True, kw_only=True)
class FineTune(ModelEdit, Training, ABC):
    """A system that minimises a loss over some of the model's tensors, as `Training` says."""

    train = "full"  # which parameters of a denoiser; no field here, since not every paper has a choice

    def __post_init__(self) -> None:
        Training.__post_init__(self)  # it checks all fields, as the other base does

    def planned(self, data: Material) -> Work:
        return Training.planned(self, data)

    def trains(self, host: Any) -> Sequence[str]:
        """Here, the group of a denoiser's parameters that `train` names."""
        which: Any = self.train
        return parameters(host, which, self.card.name)

    def hooks(self, request: Request, data: Material, fitted: Fitted) -> tuple[Hook, ...]:
        """What the patch brings besides its weights: rules of sampling, an adapter; here, nothing."""
        return ()

    @final
    def run(self, host: Any, request: Request, *, data: Material, rng: torch.Generator, trace: Trace) -> Patch:
        fitted = self.fit(host, request, data=data, seed=rng.initial_seed(), trace=trace)
        return Patch(base="", deltas=fitted.deltas, hooks=self.hooks(request, data, fitted), words=fitted.words)
