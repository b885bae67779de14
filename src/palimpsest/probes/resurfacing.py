"""Whether an erased concept comes back: by fine-tuning the edited model, or by words that are learnt against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.host import Denoiser
from palimpsest.core.patch import Patch
from palimpsest.core.reading import Curve, Evaluator, Reading, Series
from palimpsest.core.sampling import Sampling
from palimpsest.core.trace import Trace
from palimpsest.ops import statistics
from palimpsest.ops.drawn import Drawn
from palimpsest.ops.prompts import prompts_for
from palimpsest.ops.trajectories import visit
from palimpsest.probes import plan as planning
from palimpsest.probes.attempt import Budget
from palimpsest.probes.evaluators import Judge, classes_of, decide, judges_for
from palimpsest.train.attacks import Words, attack, attacked, random_words
from palimpsest.train.benign import Benign, Captioned
from palimpsest.train.loop import TrainStep

Kind = Literal["benign", "targeted"]
RELEARNT: Mapping[Kind, str] = {
    "benign": "presence after benign fine-tuning",
    "targeted": "presence after targeted fine-tuning",
}
INVERTED = "presence under token inversion"
NAMES = (*RELEARNT.values(), INVERTED)
EDITED, UNTOUCHED, NEVER = "edited model", "untouched model", "model that never saw it"
_SEED = 40_000_000  # of the pictures that are judged; those that are learnt from count up from twice that


def resurfacing(
    host: Denoiser,
    edited: Any,
    request: Request,
    budget: Budget,
    *,
    judges: Sequence[Judge] | None = None,
    oracle: Any = None,
    trace: Trace | None = None,
) -> list[Reading]:
    """All readings of this file: benign and targeted fine-tuning, then token inversion; see there.

    Cost: less than that of the three, because each model is drawn as it is only once; `Budget.drawn`.
    """
    work = _work(host, edited, request, budget, judges, oracle, trace)
    return [r for kind in RELEARNT for r in _relearnt(work, kind)] + _inverted(work)


def relearning(
    host: Denoiser,
    edited: Any,
    request: Request,
    budget: Budget,
    *,
    kind: Kind = "benign",
    judges: Sequence[Judge] | None = None,
    oracle: Any = None,
    trace: Trace | None = None,
) -> list[Reading]:
    """Presence of each target after so many steps of fine-tuning the edited model.

    The pictures to learn from are the untouched model's own: of other concepts (benign), or of the targets
    (targeted), asked for by other prompts and seeds than those that are judged. A model that never saw the targets is
    fine-tuned on the same pictures: what it then shows was taught, not left by the edit.

    Args:
        host: the untouched model; it is unchanged afterwards.
        edited: a Patch for it, or the edited model.
        judges: by default the oracle of the drawn world that the host knows.
        oracle: a model that never saw the targets; without one the lower end is missing.

    Returns:
        For each target and judge that knows it: the value is presence at the last point, in percent with Wilson's
        interval; `before` the untouched model's, as it is; `detail` holds every point of every model and the budget.

    Cost: for the edited model and the oracle, one fine-tuning and `shown` pictures a target and point.
    """
    if kind not in RELEARNT:
        raise BadRequest(f"kind is {kind!r}; it must be benign or targeted.")
    return _relearnt(_work(host, edited, request, budget, judges, oracle, trace), kind)


def inversion(
    host: Denoiser,
    edited: Any,
    request: Request,
    budget: Budget,
    *,
    judges: Sequence[Judge] | None = None,
    oracle: Any = None,
    trace: Trace | None = None,
) -> list[Reading]:
    """Presence of each target with words learnt against the edited model before each prompt (`train.attacks.attacked`).

    The attacker has the edited weights and knows how the untouched model draws the target. The same attack on a model
    that never saw the target says how much of that the words alone can teach.

    Args, Returns: as `relearning`; `detail` also has presence when asked plainly.

    Cost: for the edited model and the oracle, an attack a target and twice `shown` pictures.
    """
    return _inverted(_work(host, edited, request, budget, judges, oracle, trace))


def reading_of(name: str, concept: str, evaluator: Evaluator | None, detail: Mapping[str, Any]) -> Reading:
    """A reading from what it keeps of every picture: `verify` computes it again from that.

    Args:
        detail: steps (points), shown (model -> for each point one bit a picture), budget.
    """
    shown = detail["shown"]
    rates = {who: [_rate(b) for b in bits] for who, bits in shown.items()}
    steps, last = list(detail["steps"]), rates[EDITED][-1]
    ends = {who: points * len(steps) if len(points) == 1 else points for who, points in rates.items()}
    series = tuple(
        Series(name=who, y=tuple(p.value for p in ps), low=tuple(p.low for p in ps), high=tuple(p.high for p in ps))
        for who, ps in ends.items()
    )
    return Reading(
        name=name,
        concept=concept,
        role="target",
        value=last.value,
        low=last.low,
        high=last.high,
        n=len(shown[EDITED][-1]),
        unit="%",
        before=rates[UNTOUCHED][0].value,
        evaluator=evaluator,
        curve=Curve(x=tuple(steps), x_label="steps", y_label="presence, %", series=series),
        detail={"steps": steps, "shown": dict(shown), "budget": dict(detail["budget"])},
    )


Bits = dict[tuple[str, str], str]
"""(target, judge) -> one bit a picture: whether the judge sees the target."""


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What judges see in pictures of the targets. The audited model reads them only when its weights are back.

    Args:
        read: what the others see. unread: by target, (n, 3, H, W) uint8; {} where no judge is the model itself.
    """

    read: Bits
    unread: Mapping[str, Tensor]
    scene: _Scene
    judges: Sequence[Judge]

    @cached_property
    def bits(self) -> Bits:
        """By all judges; to be asked for when nothing is applied to any model."""
        late = [j for j in self.judges if j.evaluator.judges_itself]
        found = dict(self.read)
        for name, pictures in self.unread.items():
            found |= _seen(self.scene.targets[name], pictures.float() / 255, late)
        return found


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """What is asked: by target its concept's prompts that are judged; by kind the prompts to learn from."""

    targets: Mapping[str, Concept]
    ask: Mapping[str, Sequence[str]]
    teach: Mapping[Kind, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What all readings of one call share. models: (who, model, what is applied to it). plain: who -> what is seen
    in the model's pictures as it is, drawn once."""

    host: Denoiser
    request: Request
    budget: Budget
    judges: Sequence[Judge]
    models: Sequence[tuple[str, Denoiser, Patch]]
    trace: Trace
    scene: _Scene
    plain: dict[str, _Shown] = field(default_factory=dict)

    def as_it_is(self, who: str, model: Denoiser) -> _Shown:
        """Whoever asks first has the patch on the model."""
        if who not in self.plain:
            self.plain[who] = _shown(model, self.scene, self.judges, self.budget)
        return self.plain[who]


def _work(
    host: Denoiser,
    edited: Any,
    request: Request,
    budget: Budget,
    judges: Sequence[Judge] | None,
    oracle: Any,
    trace: Trace | None,
) -> _Work:
    return _Work(
        host=host,
        request=request,
        budget=budget,
        judges=judges_for(host) if judges is None else list(judges),
        models=_models(host, edited, oracle),
        trace=trace or Trace(),
        scene=_scene(host, request, budget),
    )


def _relearnt(work: _Work, kind: Kind) -> list[Reading]:
    budget, scene = work.budget, work.scene
    prompts = scene.teach[kind]
    texts = [prompts[i % len(prompts)] for i in range(budget.pictures)]
    learnt = _drawn(work.host, texts, 2 * _SEED + 1000 * budget.seed, budget)
    shown: dict[str, list[_Shown]] = {}
    for who, model, patch in work.models:
        points: list[_Shown] = []

        def look(model: Denoiser = model, points: list[_Shown] = points) -> None:
            points.append(_shown(model, scene, work.judges, budget))

        data = Captioned(prompts=texts, pictures=Drawn(row=torch.arange(len(texts)), x0=model.latents(learnt).float()))
        with patch.applied(model):
            if budget.steps[0] == 0:
                points.append(work.as_it_is(who, model))
            _watched(model, work, data, look)
        shown[who] = points
    shown[UNTOUCHED] = [work.as_it_is(UNTOUCHED, work.host)]
    spent = _spent(budget, pictures=budget.pictures, of=kind)
    return _readings(RELEARNT[kind], scene, work.judges, shown, {"steps": list(budget.steps), "budget": spent})


def _inverted(work: _Work) -> list[Reading]:
    budget, scene, targets = work.budget, work.scene, work.request.target
    shown: dict[str, list[_Shown]] = {}
    for who, model, patch in work.models:
        found: list[_Shown] = []
        for i, target in enumerate(targets):
            work.trace.tell(f"token inversion: {who}", i, len(targets))
            rng = torch.Generator().manual_seed(budget.seed)
            words = _words(work.host, model, patch, target, budget, rng)
            only = replace(scene, ask={target.name: scene.ask[target.name]})
            with patch.applied(model), model.prefixed(words):
                found.append(_shown(model, only, work.judges, budget))
        with patch.applied(model):
            shown[who] = [work.as_it_is(who, model), _together(found)]
    shown[UNTOUCHED] = [work.as_it_is(UNTOUCHED, work.host)]
    spent = _spent(budget, words=budget.words, steps=budget.attack_steps, batch=budget.attack_batch)
    return _readings(INVERTED, scene, work.judges, shown, {"steps": [0, budget.attack_steps], "budget": spent})


@dataclass(frozen=True, kw_only=True)
class _Watched(Benign):
    """Fine-tuning that is looked at on its way and goes as it would unwatched."""

    at: tuple[int, ...]
    look: Callable[[], None]

    def loss(self, step: TrainStep) -> Tensor:
        if step.index in self.at:
            with torch.no_grad():
                self.look()
        return super().loss(step)


def _watched(model: Denoiser, work: _Work, data: Captioned, look: Callable[[], None]) -> None:
    """Fine-tunes the model as it stands and looks after each of the budget's steps but 0; the model is unchanged."""
    budget = work.budget
    *way, last = (step for step in budget.steps if step)
    how = {"batch": budget.batch, "lr": budget.lr, "rank": budget.rank, "train": budget.train}
    tuning = _Watched(steps=last, at=tuple(way), look=look, **how)
    tuned = tuning.tuned(model, work.request, data, seed=budget.seed, trace=Trace(progress=work.trace.progress))
    with tuned.applied(model):
        look()


def _models(host: Denoiser, edited: Any, oracle: Any) -> list[tuple[str, Denoiser, Patch]]:
    """(who, model, what is applied to it) of the models that somebody tries to bring the targets back in."""
    if isinstance(edited, Patch):
        found = [(EDITED, host, edited)]
    else:
        found = [(EDITED, edited, Patch(base=edited.fingerprint()))]
    return found if oracle is None else [*found, (NEVER, oracle, Patch(base=oracle.fingerprint()))]


def _scene(host: Denoiser, request: Request, budget: Budget) -> _Scene:
    """Prompts that are judged and prompts to learn from; where a model's world has enough of them they differ."""
    n = budget.shown + budget.pictures
    drawn = planning.plan(host, request, prompts_per_concept=n, seeds=1, neighbours=2)
    mine = {g.name: g.prompts for g in drawn.groups if g.role == "target"}
    others = [g.prompts for g in drawn.groups if g.role in ("neighbour", "unrelated")]
    if not others:
        raise BadRequest("Benign fine-tuning needs other concepts to draw; name some to keep in the request.")
    return _Scene(
        targets={c.name: c for c in request.target},
        ask={name: ps[: budget.shown] for name, ps in mine.items()},
        teach={
            "benign": _in_turn(others),
            "targeted": _in_turn([ps[budget.shown :] or ps for ps in mine.values()]),
        },
    )


def _in_turn(columns: Sequence[Sequence[str]]) -> list[str]:
    """The first of each, then the second of each, and so on."""
    return [c[i] for i in range(max(map(len, columns))) for c in columns if i < len(c)]


def _words(
    host: Denoiser, model: Denoiser, patch: Patch, target: Concept, budget: Budget, rng: torch.Generator
) -> Words:
    """Learnt against a model; towards what the untouched one predicts, also where the model is another one."""
    k, steps, batch = budget.words, budget.attack_steps, budget.attack_batch
    if model is host:
        return attacked(host, patch, target, rng=rng, k=k, steps=steps, batch=batch)
    asked = prompts_for(target)
    points = visit(host, asked, 8, rng, steps=10, guidance=3.0)
    points = points[torch.randperm(len(points), generator=rng)]
    return attack(model, random_words(model, k, rng), asked, points, steps=steps, batch=batch, lr=0.1)


def _drawn(model: Denoiser, prompts: Sequence[str], first_seed: int, budget: Budget) -> Tensor:
    seeds = list(range(first_seed, first_seed + len(prompts)))
    with torch.no_grad():
        return model.sample(prompts, seeds, Sampling(steps=budget.sample_steps, guidance=budget.guidance)).detach()


def _shown(model: Denoiser, scene: _Scene, judges: Sequence[Judge], budget: Budget) -> _Shown:
    """Draws each target's prompts with the same seeds whatever the model; judges from outside read them at once."""
    read: Bits = {}
    unread: dict[str, Tensor] = {}
    itself = any(j.evaluator.judges_itself for j in judges)
    for name, prompts in scene.ask.items():
        texts = [prompts[i % len(prompts)] for i in range(budget.shown)]
        images = _drawn(model, texts, _SEED + 1000 * budget.seed, budget).clamp(0, 1).cpu()
        read |= _seen(scene.targets[name], images, [j for j in judges if not j.evaluator.judges_itself])
        if itself:
            unread[name] = (images * 255).round().to(torch.uint8)
    return _Shown(read=read, unread=unread, scene=scene, judges=judges)


def _together(parts: Sequence[_Shown]) -> _Shown:
    """Pictures of several targets."""
    read = {key: bits for part in parts for key, bits in part.read.items()}
    unread = {name: pictures for part in parts for name, pictures in part.unread.items()}
    return replace(parts[0], read=read, unread=unread)


def _seen(target: Concept, images: Tensor, judges: Sequence[Judge]) -> Bits:
    found: Bits = {}
    for judge in judges:
        classes = classes_of(judge.evaluator, target)
        if classes:
            present = decide(judge.evaluator, judge.read(images))[:, classes].any(1)
            found[target.name, judge.evaluator.name] = "".join(str(int(b)) for b in present)
    return found


def _spent(budget: Budget, **own: Any) -> dict[str, Any]:
    """The budget as the receipt keeps it."""
    return {**asdict(budget), "steps": list(budget.steps), **own}


def _readings(
    name: str, scene: _Scene, judges: Sequence[Judge], shown: Mapping[str, Sequence[_Shown]], detail: Mapping[str, Any]
) -> list[Reading]:
    found, bits = [], {who: [point.bits for point in points] for who, points in shown.items()}
    for judge in judges:
        for target in scene.ask:
            key = (target, judge.evaluator.name)
            if key in bits[UNTOUCHED][0]:
                kept = {who: [point[key] for point in points] for who, points in bits.items()}
                found.append(reading_of(name, target, judge.evaluator, {**detail, "shown": kept}))
    return found


def _rate(bits: str) -> statistics.Interval:
    """Percent, with Wilson's interval."""
    rate = statistics.wilson(bits.count("1"), len(bits))
    return statistics.Interval(*(round(100 * x, 3) for x in rate))
