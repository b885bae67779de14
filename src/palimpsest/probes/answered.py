"""The evidence about a classifier: every model's answers on each sample, collected once for all probes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.change import diff
from palimpsest.core.fingerprint import tensors_of
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.trace import Trace
from palimpsest.ops import membership
from palimpsest.probes.evidence import Evidence, norms, parts, refuse_broken, rounded
from palimpsest.train.classify import all_seen, gone, picked
from palimpsest.train.loop import minimise
from palimpsest.train.scratch import copied

FORGET, RETAIN, TEST = 1000, 1000, 2000  # samples that are looked at, at most
RELEARN_STEPS, RELEARN_BATCH, RELEARN_RATE = 24, 32, 1e-3
RELEARN_LOOKED = 200  # forgotten samples that measure relearning
DIGITS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """The samples that an audit looks at.

    Args:
        forget, retain: of the training data. test: none of them; empty where there are no held-out samples.
        like: (test,) bool: of the forgotten identities where the request and the test samples know any, else of the
            forgotten samples' classes. Membership is asked against these alone.
        gone: classes that are forgotten altogether.
    """

    forget: Pictures
    retain: Pictures
    test: Pictures
    like: Tensor
    gone: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What one model answers on "forget", "retain" and "test".

    Args:
        logits: part -> (n, classes). features: part -> (n, d) that the head reads; {} where only answers are known.
    """

    logits: Mapping[str, Tensor]
    features: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a classifier was asked to forget, as a receipt keeps it.

    Args:
        classes: names of the labels. gone: those that are forgotten altogether.
        forget: the deletion record: kind and items of the request, how many samples, and hashes that show which.
    """

    classes: tuple[str, ...]
    gone: tuple[int, ...] = ()
    forget: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered(Evidence):
    """What an audit of a classifier collected.

    Sets are "forget", "retain" and "test"; models are "before", "after", "retrained 0", "retrained 1", ...

    Measures: "set/label", "test/like", "set/model/class" (the answer), "set/model/margin" (log-odds of the label),
    "set/model/entropy", "set/model/modified entropy", "test/model/linear probe", "test/model/centroids", and
    "relearning/model/relearnt" (accuracy after each step of fine-tuning on forgotten samples).
    """

    subject: ClassVar[str] = "classifier"
    plan: Asked

    def retrained(self) -> list[str]:
        """Names of the models that never saw what is forgotten."""
        return sorted({model for _, model, _ in map(parts, self.measures) if model.startswith("retrained")})

    def hits(self, which: str, model: str) -> Tensor:
        """(n,) bool: where a model is right."""
        return self(which, model, "class") == self(which, "label")

    def known(self, which: str) -> Tensor:
        """(n,) bool: which samples of a set an accuracy is of; of held-out ones those of kept classes."""
        labels = self(which, "label")
        lost = torch.isin(labels, torch.tensor(self.plan.gone, dtype=torch.float64))
        return ~lost if which == "test" else torch.ones(len(labels), dtype=torch.bool)


def parts_of(
    split: Material,
    test: Pictures | None,
    classes: int,
    *,
    identities: Sequence[str] = (),
    forget: int = FORGET,
    retain: int = RETAIN,
    tests: int = TEST,
    seed: int = 0,
) -> Parts:
    """The samples to look at: at most so many of each, drawn at random.

    Args:
        test: held-out samples; None where there are none.
        identities: whom the request names, where it names people.
    """
    draws = torch.Generator().manual_seed(seed)
    lost = tuple(gone(split, classes).tolist())
    held = picked(split["forget"][:0] if test is None else test, tests, draws)
    like = torch.isin(held.labels, split["forget"].labels.unique())
    named = torch.tensor([who in set(identities) for who in held.columns.get("identity", ())], dtype=torch.bool)
    if identities and named.any():
        like = named
    return Parts(
        forget=picked(split["forget"], forget, draws),
        retain=picked(split["retain"], retain, draws),
        test=held,
        like=like,
        gone=lost,
    )


def answers(host: Any, looked: Parts) -> Answers:
    """One forward of every sample."""
    found = {name: all_seen(host, s) for name, s in _samples(looked).items()}
    return Answers(logits={k: v[1] for k, v in found.items()}, features={k: v[0] for k, v in found.items()})


def collect(
    host: Any,
    edited: Any,
    looked: Parts,
    *,
    retrained: Sequence[Any] = (),
    untouched: Answers | None = None,
    relearn: bool | Mapping[str, Tensor] = True,
    forget: Mapping[str, Any] | None = None,
    trace: Trace | None = None,
) -> Answered:
    """Asks every model about every sample once.

    Args:
        host: the untouched classifier. edited: a Patch for it, another classifier, or its `Answers`.
        looked: the samples to ask about. forget: the deletion record of the request, where there is one.
        retrained: classifiers that never saw what is forgotten, or their `Answers`.
        untouched: the host's answers, where they are known.
        relearn: whether to measure relearning: `RELEARN_STEPS` steps of SGD (momentum 0.9, rate 1e-3) on batches of 32
            forgotten samples, from the untouched weights' normalisation statistics; edited and first retrained model.
            Or the curves, by model, where they are known.
        trace: takes cost and progress.

    Cost: one forward of each sample and model; relearning adds 24 steps of 32 and 25 looks at up to 200 samples.
    """
    refuse_broken({"untouched model": host, "edited model": edited})
    work, start = trace or Trace(), time.perf_counter()
    with work.watching(host):
        before = untouched or answers(host, looked)
        curves = {} if isinstance(relearn, bool) else dict(relearn)
        if isinstance(edited, Answers):
            after = edited
        else:
            with _as_edited(host, edited) as changed:
                after = answers(changed, looked)
                curves |= {"after": relearnt(changed, looked.forget)} if relearn is True else {}
    known = [r if isinstance(r, Answers) else answers(r, looked) for r in retrained]
    if relearn is True and (again := next((r for r in retrained if not isinstance(r, Answers)), None)) is not None:
        curves["retrained 0"] = relearnt(again, looked.forget)
    models = {"before": before, "after": after, **{f"retrained {i}": a for i, a in enumerate(known)}}
    measures = _measures(models, looked) | {f"relearning/{k}/relearnt": v for k, v in curves.items()}
    patch = edited if isinstance(edited, Patch) else None if edited is after else _difference(host, edited)
    cost = {
        "seconds": round(time.perf_counter() - start, 3),
        "forwards": dict(work.forwards),
        "pictures": sum(map(len, _samples(looked).values())),
        "peak_bytes": work.peak_bytes,
    }
    return Answered(
        plan=Asked(classes=tuple(host.labels), gone=looked.gone, forget=dict(forget or {})),
        measures=measures,
        patch=patch,
        base={} if patch is None else norms(host, patch),
        cost=cost,
    )


def _samples(looked: Parts) -> dict[str, Pictures]:
    found = {"forget": looked.forget, "retain": looked.retain, "test": looked.test}
    return {name: samples for name, samples in found.items() if len(samples)}


@contextmanager
def _as_edited(host: Any, edited: Any) -> Iterator[Any]:
    patch = isinstance(edited, Patch)
    with edited.applied(host) if patch else nullcontext():
        yield host if patch else edited


def _difference(host: Any, edited: Any) -> Patch | None:
    mine, theirs = tensors_of(host.root), tensors_of(edited.root)
    alike = {k: t.shape for k, t in mine.items()} == {k: t.shape for k, t in theirs.items()}
    return diff(host, edited) if alike else None


def _measures(models: Mapping[str, Answers], looked: Parts) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {"test/like": looked.like.double()} if len(looked.test) else {}
    for which, samples in _samples(looked).items():
        found[f"{which}/label"] = samples.labels.double()
        for model, told in models.items():
            logits = told.logits[which]
            found |= {
                f"{which}/{model}/class": logits.argmax(1).double(),
                f"{which}/{model}/margin": _short(membership.margin(logits, samples.labels)),
                f"{which}/{model}/entropy": _short(membership.entropy(logits)),
                f"{which}/{model}/modified entropy": _short(membership.modified_entropy(logits, samples.labels)),
            }
    if not (len(looked.test) and looked.gone):
        return found
    lost = torch.isin(looked.test.labels, torch.tensor(looked.gone))
    for model, told in models.items():
        if "test" in told.features:
            found[f"test/{model}/linear probe"] = _short(membership.probe_scores(told.features["test"], lost))
            found[f"test/{model}/centroids"] = _short(membership.centroid_scores(told.features["test"], lost))
    return found


def _short(x: Tensor) -> Tensor:
    """What a receipt keeps: beyond +-1,000 a margin says no more."""
    return rounded(x.double().clamp(-1e3, 1e3), DIGITS)


def relearnt(host: Any, forget: Pictures) -> Tensor:
    """(RELEARN_STEPS + 1,) accuracy on forgotten samples, in percent, after each step of fine-tuning on them."""
    student, looked = copied(host), forget[: min(RELEARN_LOOKED, len(forget))]
    student.root.requires_grad_(True)
    leaves = dict(student.root.named_parameters())
    order = torch.randperm(len(forget), generator=torch.Generator().manual_seed(0))
    found = [_accuracy(student, looked)]

    def loss(step: int) -> Tensor:
        rows = order[torch.arange(step * RELEARN_BATCH, (step + 1) * RELEARN_BATCH) % len(order)]
        return torch.nn.functional.cross_entropy(student.logits(forget.pixels(rows)), forget.labels[rows])

    sgd = torch.optim.SGD(leaves.values(), lr=RELEARN_RATE, momentum=0.9)
    after = lambda step: found.append(_accuracy(student, looked))  # noqa: E731
    minimise(leaves, loss, steps=RELEARN_STEPS, optimiser=sgd, after=after)
    return torch.tensor(found, dtype=torch.float64)


@torch.no_grad()
def _accuracy(host: Any, samples: Pictures) -> float:
    return round(100 * float((host.logits(samples.pixels()).argmax(1).cpu() == samples.labels).float().mean()), 3)
