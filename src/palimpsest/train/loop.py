"""The one optimisation loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from palimpsest.core.concept import Request
from palimpsest.core.errors import Diverged
from palimpsest.core.trace import Trace
from palimpsest.train import checkpoint
from palimpsest.train.checkpoint import Checkpoint
from palimpsest.train.randomness import generator
from palimpsest.train.trained import Trained

EVERY = 100  # steps between checkpoints

Gradients = Mapping[str, Tensor]
"""By leaf; a leaf that a loss does not depend on is missing."""


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """One step of training, as a method's loss sees it.

    Args:
        host: the model; inside the loss it is the student.
        request: what was asked for.
        index, total: this step's number, from 0, and how many there are.
        batch: how many samples to use.
        seed: of the whole run.
        data: what the caller gave to learn from.
        context: what the method prepared.
        trace: takes the log.
        trained: swaps student and teacher.
        beside: the tensors that are trained beside the model's own.
    """

    host: Any
    request: Request
    index: int
    total: int
    batch: int
    seed: int
    data: Any
    context: Any
    trace: Trace
    trained: Trained
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    def teacher(self) -> AbstractContextManager[None]:
        """Inside, the host is the model as it was, without gradients."""
        return self.trained.teacher()

    def generator(self, *what: object) -> torch.Generator:
        """For this step's draws; they do not depend on earlier steps, so a resumed run draws the same."""
        return generator(self.seed, "step", self.index, *what)

    def log(self, name: str, value: float) -> None:
        self.trace.log.append((self.index, name, value))


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Everything that decides how the steps go.

    Args:
        trained: the model's own leaves.
        optimiser: over all leaves.
        loss: of one step; several losses are differentiated one by one, those of a generator before it goes on.
        gradient: what the optimiser gets of the losses' gradients: one mapping for each loss where `apart`, else one
            with their sum.
        apart: keeps the losses' gradients apart, which takes the memory of the trained part once more for each loss.
        clip: largest norm of the gradients of the model's own leaves together; None for no limit.
        run: says which run this is, for checkpoints.
        beside: leaves that are trained beside the model's own and are no part of the patch.
    """

    trained: Trained
    optimiser: torch.optim.Optimizer
    loss: Callable[[TrainStep], Tensor | Iterable[Tensor]]
    gradient: Callable[[TrainStep, Sequence[Gradients]], Gradients]
    apart: bool
    clip: float | None
    run: Mapping[str, Any]
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def leaves(self) -> dict[str, Tensor]:
        return {**self.trained.leaves, **self.beside}

    def go(self, steps: Iterator[TrainStep], trace: Trace) -> None:
        """Takes all steps. A checkpoint is written every 100 steps, at the end, and on Ctrl-C, where there is a folder.

        Raises:
            Diverged: a loss or gradient is no longer finite.
        """
        done, updating = None, False
        try:
            for step in steps:
                loss = self._gradients(step)
                updating = True
                self.optimiser.step()
                updating, done = False, step.index + 1
                step.log("loss", loss)
                trace.tell("training", done, step.total)
                if done % EVERY == 0 or done == step.total:
                    self._save(done, trace)
        except KeyboardInterrupt:
            # A step that was cut in the middle of its update is no state to go on from; the last checkpoint is.
            if done is not None and not updating:
                self._save(done, trace)
            raise

    def _gradients(self, step: TrainStep) -> float:
        self.optimiser.zero_grad(set_to_none=True)
        leaves = self.leaves
        with self.trained.student(), torch.enable_grad():
            found = self.loss(step)
            losses = (found,) if isinstance(found, Tensor) else found
            last = len(losses) - 1 if isinstance(losses, Sequence) else -1
            value, parts = 0.0, []
            for i, loss in enumerate(losses):
                value += float(loss.detach())
                self._finite("loss", value, step)
                loss.backward(inputs=list(leaves.values()), retain_graph=i < last)  # a generator's graphs are its own
                if self.apart:
                    parts.append(_taken(leaves))
                del loss
        del found, losses
        parts = parts or [_taken(leaves)]
        combined = self.gradient(step, parts)
        for name, leaf in leaves.items():
            leaf.grad = combined.get(name)
        del parts, combined
        clip = math.inf if self.clip is None else self.clip
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.trained.leaves.values()), clip))
        norm += float(torch.nn.utils.get_total_norm([b.grad for b in self.beside.values() if b.grad is not None]))
        self._finite("gradient", norm, step)
        return value

    def _finite(self, what: str, value: float, step: TrainStep) -> None:
        if not math.isfinite(value):
            raise Diverged(
                f"The {what} became {value} at step {step.index + 1} of {step.total}; nothing was changed. "
                "Try a lower lr, fewer steps or, for a half-precision model, float32."
            )

    def _save(self, done: int, trace: Trace) -> None:
        if trace.folder is not None:
            state = Checkpoint(
                step=done,
                leaves=self.leaves,
                optimiser=checkpoint.optimiser_tensors(self.optimiser, self.leaves),
                log=tuple(entry for entry in trace.log if entry[0] < done),
            )
            checkpoint.save(trace.folder, self.run, state)

    def resumed(self, trace: Trace) -> int:
        """How many steps are done already; restores what they left. 0 where nothing is to be resumed."""
        saved = checkpoint.load(trace.folder, self.run) if trace.resume and trace.folder is not None else None
        if saved is None:
            return 0
        checkpoint.restore(self.optimiser, self.leaves, saved)
        trace.log[:] = saved.log
        return saved.step


def _taken(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The leaves' gradients so far; the next ones start from nothing."""
    found = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    for leaf in leaves.values():
        leaf.grad = None
    return found
