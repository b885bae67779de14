"""The one loop of optimisation: tensors, a loss, steps; with or without a model around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.core.concept import Request
from palimpsest.core.errors import Diverged
from palimpsest.core.trace import Trace
from palimpsest.core.words import Word
from palimpsest.train import checkpoint, ranks
from palimpsest.train.checkpoint import Checkpoint
from palimpsest.train.randomness import generator
from palimpsest.train.trained import Trained

EVERY = 100  # steps between checkpoints
DRAWS, SCALE = "generator", "loss scale"  # what a checkpoint calls the state of `draws`, and the factor of losses
FIRST_SCALE = 2.0**12

Gradients = Mapping[str, Tensor]
"""By leaf; a leaf that a loss does not depend on is missing."""

Losses = Tensor | Iterable[Tensor]
"""One scalar, or several: they are differentiated one by one, those of a generator before it goes on."""


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """One step of training, as a loss sees it.

    Args:
        host: the model; inside the loss it is the student.
        request: what was asked for.
        index, total: this step's number, from 0, and how many there are.
        batch: how many samples to use.
        seed: of the whole run.
        data: what the caller gave to learn from.
        context: what the training prepared.
        trace: takes the log.
        trained: swaps student and teacher.
        free: the tensors that are trained beside the model's own.
        words: that are trained; the student speaks them, the teacher does not know them.
        kept: the tensors that steps write by themselves.
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
    free: Mapping[str, Tensor] = field(default_factory=dict)
    words: Mapping[str, Word] = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)

    def student(self) -> AbstractContextManager[None]:
        """Inside, the host is the student; a loss finds it so already."""
        return self.trained.student()

    def teacher(self) -> AbstractContextManager[None]:
        """Inside, the host is the model as it was, without gradients."""
        return self.trained.teacher()

    def holding(self, tensors: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Inside, the host is a third network: the model as it was but for these tensors, by their parameters' names.

        Gradients flow through it: into its input and, where they want any, into the tensors.

        Raises:
            BadRequest: a name that this run does not train.
        """
        return self.trained.holding(tensors)

    def generator(self, *what: object) -> torch.Generator:
        """For this step's draws; they do not depend on earlier steps, so a resumed run draws the same."""
        return generator(self.seed, "step", self.index, *what)

    def log(self, name: str, value: float) -> None:
        self.trace.log.append((self.index, name, value))


def identity(system: Any, host: Any, request: Request, seed: int) -> dict[str, Any]:
    """Which run a checkpoint belongs to: system or training, parameters, request, seed and model, as plain JSON."""
    name = getattr(system, "id", type(system).__name__)
    asked = {"request": request.plain(), "seed": seed, "base": host.fingerprint()}
    return {"method": name, "parameters": system.parameters(), **asked}


def constant(step: int, total: int) -> float:
    """The factor of a rate that stays as it is."""
    return 1.0


def summed(step: int, parts: Sequence[Gradients]) -> Gradients:
    """What the optimiser gets where nothing is to be combined: the one mapping there is."""
    (whole,) = parts
    return whole


def minimise(
    leaves: Mapping[str, Tensor],
    loss: Callable[[int], Losses],
    *,
    steps: int,
    optimiser: torch.optim.Optimizer,
    trace: Trace | None = None,
    run: Mapping[str, Any] | None = None,
    kept: Mapping[str, Tensor] | None = None,
    draws: torch.Generator | None = None,
    gradient: Callable[[int, Sequence[Gradients]], Gradients] = summed,
    apart: bool = False,
    schedule: Callable[[int, int], float] = constant,
    after: Callable[[int], object] | None = None,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    called: str = "loss",
    through: nn.Module | None = None,
) -> None:
    """Changes tensors, in place, so that a loss falls.

    Args:
        leaves: what is trained, by name.
        loss: of step k, from 0.
        optimiser: over all leaves.
        trace: takes the log; told of the progress; with a folder, a checkpoint is written every 100 steps, at the end
            and on Ctrl-C, and a run that resumes goes on from it.
        run: plain JSON that says which run this is; a checkpoint of another one is refused.
        kept: tensors that steps write by themselves, in place; they come back when a run resumes.
        draws: what the losses draw from, where that is not a function of the step; likewise.
        gradient: what the optimiser gets of step k's gradients: one mapping for each loss where `apart`, else one with
            their sum. A leaf that is left out stays as it is. It may reuse the tensors that it was given.
        apart: keeps the losses' gradients apart, which takes the memory of the leaves once more for each loss.
        schedule: of step k and all steps: the factor of the optimiser's rates.
        after: called with k once its update is done, without gradients.
        within: a context that is open while the loss is computed and differentiated.
        called: what the log calls the loss.
        through: a model that gradients flow through. In float16 small ones would become zero: losses are differentiated
            times 4096 and gradients divided by it; a step whose gradients overflow is not taken, and the factor halved.

    Raises:
        Diverged: a loss or gradient is no longer finite.
    """
    trace, kept = trace or Trace(), dict(kept or {})
    scale = torch.tensor(FIRST_SCALE) if through is not None and _halved(through) else None
    if scale is not None:
        kept[SCALE] = scale
    state = _State(leaves=leaves, optimiser=optimiser, kept=kept, draws=draws, run=run or {})
    rates = [group["lr"] for group in optimiser.param_groups]
    done, updating = None, False
    try:
        start = state.resumed(trace)
        ranks.agree("step to go on from", start)
        for k in range(start, steps):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(k, steps)
            optimiser.zero_grad(set_to_none=True)
            with within(), torch.enable_grad():
                value, parts = _differentiated(leaves, loss(k), apart, f"step {k + 1} of {steps}", scale)
            parts = [ranks.averaged(part) for part in parts]
            if scale is None or _fits(parts, scale):
                _give(leaves, gradient(k, parts), f"step {k + 1} of {steps}")
                del parts
                updating = True
                optimiser.step()
                if after is not None:
                    with torch.no_grad():
                        after(k)
            updating, done = False, k + 1
            trace.log.append((k, called, value))
            trace.tell("training", done, steps)
            if done % EVERY == 0 or done == steps:
                state.save(done, trace)
    except KeyboardInterrupt:
        # A step that was cut in the middle of its update is no state to go on from; the last checkpoint is.
        if done is not None and not updating:
            state.save(done, trace)
        raise
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)


def clipped(gradients: Gradients, most: float | None, *, but: Iterable[str] = ()) -> Gradients:
    """Gradients scaled, in place, so that their norm together is at most `most`; None: as they are.

    Args:
        but: leaves that neither count nor are scaled.
    """
    left = set(but)
    chosen = [g for name, g in gradients.items() if name not in left]
    if most is not None and chosen:
        factor = (most / (torch.nn.utils.get_total_norm(chosen) + 1e-6)).clamp(max=1.0)
        for g in chosen:
            g.mul_(factor)
    return gradients


@dataclass(frozen=True, kw_only=True)
class _State:
    """What a run is at a step, and which run it is."""

    leaves: Mapping[str, Tensor]
    optimiser: torch.optim.Optimizer
    kept: Mapping[str, Tensor]
    draws: torch.Generator | None
    run: Mapping[str, Any]

    def save(self, done: int, trace: Trace) -> None:
        if trace.folder is None or ranks.rank():
            return
        state = Checkpoint(
            step=done,
            leaves=self.leaves,
            optimiser=checkpoint.optimiser_tensors(self.optimiser, self.leaves),
            kept=self._kept(),
            log=tuple(entry for entry in trace.log if entry[0] < done),
        )
        checkpoint.save(trace.folder, self.run, state)

    def _kept(self) -> dict[str, Tensor]:
        return {**self.kept, **({} if self.draws is None else {DRAWS: self.draws.get_state()})}

    def resumed(self, trace: Trace) -> int:
        """How many steps are done already; restores what they left. 0 where nothing is to be resumed."""
        saved = checkpoint.load(trace.folder, self.run) if trace.resume and trace.folder is not None else None
        if saved is None:
            return 0
        kept = self._kept()
        checkpoint.restore(self.optimiser, self.leaves, kept, saved)
        if self.draws is not None:
            self.draws.set_state(kept[DRAWS])
        trace.log[:] = saved.log
        return saved.step


def _differentiated(
    leaves: Mapping[str, Tensor], losses: Losses, apart: bool, where: str, scale: Tensor | None
) -> tuple[float, list[Gradients]]:
    """The sum of the losses and their gradients; one graph is in memory at a time where they come one by one."""
    factor = 1.0 if scale is None else float(scale)
    each = (losses,) if isinstance(losses, Tensor) else losses
    last = len(each) - 1 if isinstance(each, Sequence) else -1
    value, parts = 0.0, []
    for i, loss in enumerate(each):
        value += float(loss.detach())
        _finite("loss", value, where)
        loss = loss if scale is None else loss * factor
        loss.backward(inputs=list(leaves.values()), retain_graph=i < last)  # a generator's graphs are its own
        if apart:
            parts.append(_taken(leaves, factor))
        del loss
    return value, parts or [_taken(leaves, factor)]


def _taken(leaves: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The leaves' gradients so far, of a loss times a factor; the next ones start from nothing."""
    found = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    for leaf in leaves.values():
        leaf.grad = None
    if factor != 1:
        torch._foreach_div_(list(found.values()), factor)
    return found


def _halved(model: nn.Module) -> bool:
    return any(p.dtype == torch.float16 for p in model.parameters())


def _fits(parts: Sequence[Gradients], scale: Tensor) -> bool:
    """Whether all gradients are finite; where not, the scale of the next losses is halved, unless it is none."""
    if scale <= 1 or all(math.isfinite(_norm(part.values())) for part in parts):
        return True
    scale /= 2
    return False


def _give(leaves: Mapping[str, Tensor], gradients: Gradients, where: str) -> None:
    """Puts gradients where an optimiser looks for them; raises Diverged where they are not finite."""
    for name, leaf in leaves.items():
        leaf.grad = gradients.get(name)
    _finite("gradient", _norm(leaf.grad for leaf in leaves.values() if leaf.grad is not None), where)


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(list(tensors)))


def _finite(what: str, value: float, where: str) -> None:
    if not math.isfinite(value):
        raise Diverged(
            f"The {what} became {value} at {where}; nothing was changed. "
            "Try a lower lr, fewer steps or, for a half-precision model, float32."
        )
