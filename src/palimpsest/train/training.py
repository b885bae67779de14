"""A training as a value: what is trained, by which loss, for how long. Systems are made of it, and may hold several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from palimpsest.core.concept import Request
from palimpsest.core.delta import Delta
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, NonNegative, Size, checked, types_of
from palimpsest.core.method import Work
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.core.words import Word, sound
from palimpsest.train import ranks
from palimpsest.train.loop import Gradients, Losses, TrainStep, clipped, constant, identity, minimise
from palimpsest.train.trained import Trained


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a training leaves behind.

    Args:
        deltas: of the model's tensors.
        free: the tensors that were trained beside, on the CPU.
        words: that were trained, on the CPU.
        log: (step, name, value).
    """

    deltas: Mapping[str, Delta]
    free: Mapping[str, Tensor]
    words: Mapping[str, Word]
    log: tuple[tuple[int, str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Training(ABC):
    """Minimises a loss over some of a model's tensors. It has no card: a system is one, or holds some as its fields.

    The frozen tensors exist once, for student and teacher. Every draw is a function of (seed, step), so that a run
    that was stopped and resumed equals an unbroken one. Subclasses repeat these fields with their papers' defaults.

    Args:
        steps: of the optimiser.
        lr: its learning rate.
        batch: samples for each step.

    Where a subclass makes `rank` a field: 0 trains the tensors themselves, r > 0 a low-rank change of each.

    Cost: memory of the trained part four times over (leaf, gradient, two moments) beside one model.
    """

    steps: Count
    lr: NonNegative
    batch: Count

    rank = 0  # no field here, since not every loss bears a low-rank change
    word_lr = 5e-3  # of words that are trained, in the vectors' own units; no field here, since few losses train any
    clip: ClassVar[float | None] = None
    """Largest norm of all gradients of the model's own tensors together."""
    apart: ClassVar[bool] = False
    """Whether `gradient` gets each loss's gradients by themselves; their sum takes less memory."""
    divisible: ClassVar[bool] = True
    """Whether several processes may divide a step's rows: not where a loss differentiates gradients, or a network is
    trained before the first step (`train.ranks`)."""

    def __post_init__(self) -> None:
        """Raises BadRequest where a field holds a value that its type, or that of the field it repeats, does not."""
        for name, hint in types_of(type(self)).items():
            checked(name, getattr(self, name), hint)
        for name, hint in {**types_of(Training), "rank": Size, "word_lr": NonNegative}.items():
            checked(name, getattr(self, name), hint | None)

    @abstractmethod
    def trains(self, host: Any) -> Sequence[str]:
        """Names of the parameters to train, as in `host.root.named_parameters()`; none, where words are trained."""

    @abstractmethod
    def loss(self, step: TrainStep) -> Losses:
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

    def prepare(self, host: Any, request: Request, *, data: Material, seed: int, trace: Trace) -> Any:
        """What all steps need, computed once on the untouched model, without gradients; it becomes `step.context`."""
        return None

    def new_words(self, host: Any, request: Request, data: Material) -> Mapping[str, Word]:
        """Words that are trained at the rate `word_lr`, as they start: `step.words`, `Fitted.words`. Here, none.

        Prompts of the student may say them (`host.encode` inside the loss); the teacher, and `prepare`, read them by
        their letters. A resumed run has them back.
        """
        return {}

    def free(self, context: Any, seed: int) -> Mapping[str, Tensor]:
        """Tensors that are trained beside the model's own (a discriminator, an adapter): `step.free`, `Fitted.free`.

        By names that no parameter of the model has, as they start, given what `prepare` returned. A resumed run has
        them back.
        """
        return {}

    def free_options(self) -> Mapping[str, Any]:
        """What the optimiser does differently for the free tensors: lr, betas."""
        return {}

    def kept(self, context: Any, seed: int) -> Mapping[str, Tensor]:
        """Tensors that steps write by themselves, in place (averaged weights, queues): `step.kept`.

        As they start. No gradient reaches them; a resumed run has them back.
        """
        return {}

    def after(self, step: TrainStep) -> None:  # noqa: B027 (nothing to do is a default)
        """What follows a step's update, without gradients; `with step.student():` makes the host the student."""

    def schedule(self, k: int, total: int) -> float:
        """The factor of the learning rate at step k."""
        return constant(k, total)

    def settled(self, step: TrainStep) -> Mapping[str, Delta]:
        """What else changes once training is done, such as statistics of batch norms.

        Args:
            step: one more step, number `total`, that is not taken; `with step.student():` makes the host the student.
        """
        return {}

    def optimiser(self, leaves: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Adam without weight decay: decay would move weights that the loss says nothing about."""
        return torch.optim.AdamW(list(leaves), lr=self.lr, weight_decay=0.0)

    def total(self, data: Material) -> int:
        """How many steps a run on this data takes."""
        return self.steps

    def planned(self, data: Material) -> Work:
        """What a run on this data takes, but for what is read before its first step."""
        steps = self.total(data)
        return Work(steps=steps, samples=steps * self.batch)

    def parameters(self) -> dict[str, Any]:
        """Plain JSON of the fields."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @final
    def fit(self, host: Any, request: Request, *, data: Any, seed: int, trace: Trace) -> Fitted:
        """Trains; the host is unchanged afterwards, also after an error.

        Raises:
            BadRequest: there is nothing to train, a checkpoint in the trace's folder belongs to another run, or
                several processes cannot divide a step's rows.
            Diverged: a loss or gradient is no longer finite.
        """
        total, run = self.total(data), identity(self, host, request, seed)
        self._divide(run)
        with torch.no_grad():
            words, spoken = _leaves(host, sound(self.new_words(host, request, data)))
        speak = partial(host.speaking, words) if words else None
        trained = Trained(host.root, self.trains(host), rank=self.rank, seed=seed, speak=speak)
        with trained.frozen(), ranks.divided(host):
            with torch.no_grad():
                context = self.prepare(host, request, data=data, seed=seed, trace=trace)
            free = {n: t.detach().clone().requires_grad_(True) for n, t in self.free(context, seed).items()}
            kept = {n: t.detach().clone() for n, t in self.kept(context, seed).items()}
            optimiser = self.optimiser(list(trained.leaves.values()) or list(spoken.values()))
            if spoken:
                if trained.leaves:
                    optimiser.add_param_group({"params": list(spoken.values())})
                optimiser.param_groups[-1]["lr"] = self.word_lr
            if free:
                optimiser.add_param_group({"params": list(free.values()), **self.free_options()})

            def at(k: int) -> TrainStep:
                return TrainStep(
                    host=host,
                    request=request,
                    index=k,
                    total=total,
                    batch=self.batch,
                    seed=seed,
                    data=data,
                    context=context,
                    trace=trace,
                    trained=trained,
                    free=free,
                    words=words,
                    kept=kept,
                )

            minimise(
                {**trained.leaves, **spoken, **free},
                lambda k: self.loss(at(k)),
                steps=total,
                optimiser=optimiser,
                trace=trace,
                run=run,
                kept=kept,
                gradient=lambda k, parts: clipped(self.gradient(at(k), parts), self.clip, but={**spoken, **free}),
                apart=self.apart,
                schedule=self.schedule,
                after=lambda k: self.after(at(k)),
                within=trained.student,
                through=host.root,
            )
            optimiser.state.clear()  # gradients and moments make room for the deltas
            with torch.no_grad():
                deltas = {**trained.deltas(), **self.settled(at(total))}
        return Fitted(
            deltas=deltas,
            free={n: t.detach().cpu() for n, t in free.items()},
            words={word: meant.mapped(lambda t: t.detach().cpu()) for word, meant in words.items()},
            log=tuple(trace.log),
        )

    def _divide(self, run: Mapping[str, Any]) -> None:
        """Raises BadRequest where several processes train and cannot divide a step."""
        n = ranks.world()
        if n == 1:
            return
        if not self.divisible:
            raise BadRequest(
                f"{run['method']} differentiates gradients in its loss, or trains a network beside, which processes "
                "cannot divide; run it by one."
            )
        if self.batch < n:
            raise BadRequest(f"batch is {self.batch}; {n} processes cannot divide it. Give a batch of at least {n}.")
        ranks.agree("training", run)


def _leaves(host: Any, words: Mapping[str, Word]) -> tuple[dict[str, Word], dict[str, Tensor]]:
    """The words with vectors that can be trained, and these by name."""
    leaves: dict[str, Tensor] = {}

    def leaf(vectors: Tensor) -> Tensor:
        return vectors.detach().to(host.device, torch.float32, copy=True).requires_grad_(True)

    made = {word: meant.mapped(leaf) for word, meant in words.items()}
    for word, meant in made.items():
        leaves |= {f"{word}|{table}": vectors for table, vectors in meant.vectors.items()}
    return made, leaves
