"""What asks for a request's targets, what answers it, and the walks of the untouched model towards it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from palimpsest.core.concept import Request
from palimpsest.core.host import Cond, Denoiser
from palimpsest.ops.prompts import answered
from palimpsest.ops.trajectories import Visited
from palimpsest.train.loop import TrainStep
from palimpsest.train.walks import KeptWalk


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Prompts that a fine-tuning erases, row by row with what each is answered as.

    Args:
        cond: the encoded prompts.
        answer: what they are answered as, encoded; None: the empty prompt.
        walk: of the untouched model towards the prompts.
    """

    cond: Cond
    answer: Cond | None
    walk: KeptWalk

    @staticmethod
    def prepare(host: Denoiser, request: Request, steps: int, guidance: float) -> Asked:
        """Everything that asks for the request's targets; answered as its replacements, where it names any."""
        prompts, answers = zip(*answered(request), strict=True)
        return Asked.of(host, prompts, answers if request.toward else (), steps=steps, guidance=guidance)

    @staticmethod
    def of(
        host: Denoiser, prompts: Sequence[str], answers: Sequence[str] = (), *, steps: int, guidance: float
    ) -> Asked:
        """These prompts, with walks of so many steps at this guidance. Cost: a text forward of all texts."""
        return Asked(
            cond=host.encode(prompts),
            answer=host.encode(answers) if answers else None,
            walk=KeptWalk(prompts=list(prompts), steps=steps, guidance=guidance),
        )

    def points(self, step: TrainStep) -> Visited:
        """This step's points of the walks, with the predictions made there."""
        return self.walk.points(step)

    def start(self, step: TrainStep, at: Visited) -> Tensor:
        """x0 (n, c, h, w) that the untouched model predicts at the points for the answers: where a goal starts."""
        return start(step, at, self.answer)


def start(step: TrainStep, at: Visited, answer: Cond | None) -> Tensor:
    """x0 (n, c, h, w) that the untouched model predicts at points for their rows' answers; None: the empty prompt.

    Cost: a forward without gradients; none for the empty prompt, whose predictions are on the points.
    """
    if answer is None:
        return at.x0_null
    with step.teacher():
        return step.host.denoise(at.x, at.t, answer[at.row])
