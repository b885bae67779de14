"""The one optimisation loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
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
        trained: the leaves.
        optimiser: over those leaves.
        loss: of one step.
        clip: largest norm of all gradients together; None for no limit.
        run: says which run this is, for checkpoints.
    """

    trained: Trained
    optimiser: torch.optim.Optimizer
    loss: Callable[[TrainStep], Tensor]
    clip: float | None
    run: Mapping[str, Any]

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
        with self.trained.student(), torch.enable_grad():
            loss = self.loss(step)
            value = float(loss.detach())
            self._finite("loss", value, step)
            loss.backward()
        leaves = list(self.trained.leaves.values())
        norm = float(torch.nn.utils.clip_grad_norm_(leaves, math.inf if self.clip is None else self.clip))
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
                leaves=self.trained.leaves,
                optimiser=checkpoint.optimiser_tensors(self.optimiser, self.trained.leaves),
                log=tuple(entry for entry in trace.log if entry[0] < done),
            )
            checkpoint.save(trace.folder, self.run, state)

    def resumed(self, trace: Trace) -> int:
        """How many steps are done already; restores what they left. 0 where nothing is to be resumed."""
        saved = checkpoint.load(trace.folder, self.run) if trace.resume and trace.folder is not None else None
        if saved is None:
            return 0
        checkpoint.restore(self.optimiser, self.trained.leaves, saved)
        trace.log[:] = saved.log
        return saved.step
