"""Walks of the untouched model whose every state serves one training step."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch

from palimpsest.ops.trajectories import Visited, visit
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator


@dataclass(kw_only=True)
class KeptWalk:
    """Every state of a walk serves one training step; the states of several walks are shuffled, so that steps that
    follow each other do not learn from one and the same picture.

    Which states a step gets depends on (seed, step) only, so a resumed run gets the same.

    Args:
        prompts: one is drawn for each row of a walk.
        steps, guidance: of the sampler.
        mixed: how many walks are shuffled together; their states are kept until all are used
            (mixed x steps x batch x 3 latents).

    Cost: 2 forwards a row and step, the predictions that the walk needed anyway; they are on the points.
    """

    prompts: list[str]
    steps: int
    guidance: float
    mixed: int = 8
    _number: int = -1
    _points: Visited | None = None

    def points(self, step: TrainStep) -> Visited:
        """`step.batch` points for this step."""
        n = step.batch
        block = self.steps * self.mixed
        number, turn = divmod(step.index, block)
        if self._points is None or self._number != number:
            self._points = None  # its memory serves the next walks
            due = min(block, step.total - number * block)
            with step.teacher():
                points = Visited.cat([self._walk(step, number, i) for i in range(ceil(due / self.steps))])
            order = torch.randperm(len(points), generator=generator(step.seed, "order", number))
            self._number, self._points = number, points[order]
        return self._points[turn * n : (turn + 1) * n]

    def _walk(self, step: TrainStep, number: int, i: int) -> Visited:
        draws = generator(step.seed, "walk", number, i)
        return visit(step.host, self.prompts, step.batch, draws, steps=self.steps, guidance=self.guidance)
