"""The base of every system that trains: it says what is trained and what the loss is; the loop does the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from palimpsest.core.concept import Request
from palimpsest.core.method import ModelEdit, at_least
from palimpsest.core.patch import Hook, Patch
from palimpsest.core.trace import Trace
from palimpsest.train.loop import Gradients, Loop, TrainStep
from palimpsest.train.trained import Trained


@dataclass(frozen=True, kw_only=True)
class FineTune(ModelEdit, ABC):
    """A system that minimises a loss over some of the model's tensors.

    The frozen tensors exist once, for student and teacher. Every draw is a function of (seed, step), so that a run
    that was stopped and resumed equals an unbroken one. Systems repeat these fields with their papers' defaults.

    Args:
        steps: of the optimiser; at least 1.
        lr: its learning rate.
        batch: samples for each step.
        rank: 0 trains the tensors themselves, r > 0 a low-rank change of each (the patch is then a LoRA).

    Cost: memory of the trained part four times over (leaf, gradient, two moments) beside one model.
    """

    steps: int
    lr: float
    batch: int
    rank: int = 0

    clip: ClassVar[float | None] = None
    """Largest norm of all gradients together."""
    apart: ClassVar[bool] = False
    """Whether `gradient` gets each loss's gradients by themselves; their sum takes less memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("steps", self.steps, 1, "nothing would be trained")
        at_least("lr", self.lr, 0.0)
        at_least("batch", self.batch, 1)
        at_least("rank", self.rank, 0)

    @abstractmethod
    def trains(self, host: Any) -> Sequence[str]:
        """Names of the parameters to train, as in `host.root.named_parameters()`."""

    @abstractmethod
    def loss(self, step: TrainStep) -> Tensor | Iterable[Tensor]:
        """The scalar to minimise. The host is the student; `with step.teacher():` makes it the model as it was.

        Several scalars are differentiated one by one and meet in `gradient`. Best yield them, each from a forward of
        its own: then only one graph is in memory at a time. Those of a list or tuple may share a graph.
        """

    def gradient(self, step: TrainStep, parts: Sequence[Gradients]) -> Gradients:
        """What the optimiser gets, by leaf: here, the sum over the losses. Masks and gradient surgery go here.

        Args:
            parts: where `apart`, the gradients of each loss, in order; else one entry, their sum. By leaf (with
                rank 0, a leaf is named like its parameter); a leaf that a loss does not depend on is missing.

        Returns:
            By leaf; a leaf that is left out stays as it is. May reuse the tensors that it was given.
        """
        (whole,) = parts
        return whole

    def beside(self, context: Any, seed: int) -> Mapping[str, Tensor]:
        """Tensors that are trained beside the model's own and are no part of the patch (a discriminator, a prompt).

        By names that no parameter of the model has, as they start, given what `prepare` returned. They are
        `step.beside`, and a resumed run has them back.
        """
        return {}

    def prepare(self, host: Any, request: Request, *, data: Any, seed: int, trace: Trace) -> Any:
        """What all steps need, computed once on the untouched model, without gradients; it becomes `step.context`."""
        return None

    def optimiser(self, leaves: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Adam without weight decay: decay would move weights that the loss says nothing about."""
        return torch.optim.AdamW(list(leaves), lr=self.lr, weight_decay=0.0)

    def beside_options(self) -> Mapping[str, Any]:
        """What the optimiser does differently for the tensors beside: lr, betas."""
        return {}

    def hooks(self, request: Request, data: Any) -> tuple[Hook, ...]:
        """What the patch brings besides its weights: rules of sampling; here, none."""
        return ()

    @final
    def run(self, host: Any, request: Request, *, data: Any, rng: torch.Generator, trace: Trace) -> Patch:
        seed = rng.initial_seed()
        trained = Trained(host.root, self.trains(host), rank=self.rank, seed=seed)
        identity = {
            "method": self.id,
            "parameters": self.parameters(),
            "request": asdict(request),
            "seed": seed,
            "base": host.fingerprint(),
        }
        with trained.frozen():
            with torch.no_grad():
                context = self.prepare(host, request, data=data, seed=seed, trace=trace)
            beside = {n: t.detach().clone().requires_grad_(True) for n, t in self.beside(context, seed).items()}
            optimiser = self.optimiser(trained.leaves.values())
            if beside:
                optimiser.add_param_group({"params": list(beside.values()), **self.beside_options()})
            loop = Loop(
                trained=trained,
                optimiser=optimiser,
                loss=self.loss,
                gradient=self.gradient,
                apart=self.apart,
                clip=self.clip,
                run=identity,
                beside=beside,
            )
            start = loop.resumed(trace)
            steps = (
                TrainStep(
                    host=host,
                    request=request,
                    index=k,
                    total=self.steps,
                    batch=self.batch,
                    seed=seed,
                    data=data,
                    context=context,
                    trace=trace,
                    trained=trained,
                    beside=beside,
                )
                for k in range(start, self.steps)
            )
            loop.go(steps, trace)
        optimiser.zero_grad(set_to_none=True)
        optimiser.state.clear()  # gradients and moments make room for the deltas
        return Patch(base="", deltas=trained.deltas(), hooks=self.hooks(request, data))
