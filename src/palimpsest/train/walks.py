"""Walks of the untouched model whose every state serves one training step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from palimpsest.ops.trajectories import Visited, visit
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator


@dataclass(kw_only=True)
class KeptWalk:
    """One walk serves as many training steps as it has steps: all its states are used once, in random order.

    Which states a step gets depends on (seed, step) only, so a resumed run gets the same.

    Args:
        prompts: one is drawn for each row of a walk.
        steps, guidance: of the sampler.

    Cost: 2 forwards a row and step, the predictions that the walk needed anyway; they are on the points.
    """

    prompts: list[str]
    steps: int
    guidance: float
    _number: int = -1
    _points: Visited | None = None

    def points(self, step: TrainStep) -> Visited:
        """`step.batch` points for this step."""
        n = step.batch
        number, turn = divmod(step.index, self.steps)
        if self._points is None or self._number != number:
            self._points = None  # its memory serves the next walk
            draws = generator(step.seed, "walk", number)
            with step.teacher():
                points = visit(step.host, self.prompts, n, draws, steps=self.steps, guidance=self.guidance)
            order = torch.randperm(len(points), generator=generator(step.seed, "order", number))
            self._number, self._points = number, points[order]
        return self._points[turn * n : (turn + 1) * n]
