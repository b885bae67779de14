"""What merging is examined on: classifiers of one start whose merits are known, trained on first use and kept.

A change of how they are trained is another work: raise VERSION here and the exams' own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from palimpsest.core.files import write_beside
from palimpsest.core.fingerprint import raw_bytes
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Pictures
from palimpsest.data.dataset import Dataset
from palimpsest.hosts.load import load
from palimpsest.tiny import classifiers
from palimpsest.tiny.assemble import cache
from palimpsest.tiny.classifiers import Recipe
from palimpsest.tiny.shelf import maker
from palimpsest.train.classify import cross_entropy, stream
from palimpsest.train.loop import Gradients, clipped, minimise
from palimpsest.train.randomness import generator
from palimpsest.train.trained import Trained
from palimpsest.worlds.glyphs import GLYPHS

VERSION = 1
SUBJECTS = GLYPHS.vocabulary["subject"][: -len(GLYPHS.held_out["subject"])]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a part is fine-tuned: SGD with momentum 0.9, gradients of norm 1 at most, a rate that falls to zero.

    Batch norms keep their running statistics, so that a part is a change of weights alone.
    """

    epochs: float
    lr: float = 0.01
    batch: int = 64


def drawn(style: str, n: int, *what: object) -> Pictures:
    """n drawn pictures of one subject in a style, 32 px, labelled with the subject; `what` names the draws."""
    draws = generator(VERSION, "merge", style, n, *what)
    labels = GLYPHS.sample(n, generator=draws)
    for key in ("subject2", "colour2", "relation"):
        labels[key].fill_(-1)
    labels["position"].fill_(0)
    labels["style"].fill_(GLYPHS.vocabulary["style"].index(style))
    images = GLYPHS.draw(labels, generator=draws, captions=[""] * n).images
    small = (F.avg_pool2d(images, 2) * 255).round().byte()
    return Pictures(images=small, names=tuple(f"{style} {i}" for i in range(n)), labels=labels["subject"])


def one_each(pictures: Pictures, classes: int) -> Pictures:
    """The first picture of each class."""
    return pictures[[int((pictures.labels == c).nonzero()[0]) for c in range(classes)]]


def started(name: str, pictures: Pictures, classes: Sequence[str], recipe: Recipe, seed: int) -> Any:
    """A classifier that is trained anew, in float32, so that it is the same wherever."""
    data = Dataset(samples=pictures, classes=tuple(classes))
    task = classifiers.Task(name=name, train=data, test=data, recipe=recipe, forget=(), tune=())
    folder = cache() / "classifiers" / f"{name}-{_named(pictures, asdict(recipe), seed)}"
    if not (folder / "config.json").is_file():
        made = maker("train_classifier").train(pictures, len(classes), recipe, seed=seed, precision=torch.float32)
        classifiers.keep(made, task, folder)
    return load(folder)


def tuned(host: Any, pictures: Pictures, how: Tuning, seed: int) -> Patch:
    """What fine-tuning a classifier on some pictures changes."""
    path = cache().parent / "exam" / f"part-{_named(pictures, asdict(how), seed, host.fingerprint())}.safetensors"
    if path.is_file():
        return Patch.load(path)
    trained = Trained(host.root, [name for name, _ in host.root.named_parameters()])
    n, batch = len(pictures), min(how.batch, len(pictures))

    def loss(k: int) -> Tensor:
        rows = stream(n, batch, seed, k, "part")
        with trained.student():
            return cross_entropy(host.logits(pictures.pixels(rows)), pictures.labels[rows])

    def gradient(k: int, found: Sequence[Gradients]) -> Gradients:
        return clipped(found[0], 1.0)

    with trained.frozen():
        minimise(
            trained.leaves,
            loss,
            steps=max(1, round(how.epochs * n / batch)),
            optimiser=torch.optim.SGD(list(trained.leaves.values()), lr=how.lr, momentum=0.9),
            gradient=gradient,
            schedule=lambda k, total: 1 - k / total,
        )
    patch = Patch(base=host.fingerprint(), deltas=trained.deltas(), provenance={"method": "fine-tuning"})
    write_beside(path, lambda tmp: patch.save(tmp))
    return patch


@torch.no_grad()
def logits(host: Any, pictures: Pictures) -> Tensor:
    """(n, classes) of a model as it stands."""
    return torch.cat([host.logits(pictures.pixels(rows)) for rows in torch.arange(len(pictures)).split(250)])


def right(host: Any, pictures: Pictures) -> str:
    """One bit a picture: whether the model as it stands answers with its label."""
    return bits(logits(host, pictures).argmax(1) == pictures.labels)


def bits(found: Tensor) -> str:
    """Booleans as records hold them."""
    return "".join(str(int(b)) for b in found)


@contextmanager
def changed(host: Any, patch: Patch | None) -> Iterator[None]:
    """The model with a patch; as it is where there is none."""
    if patch is None:
        yield
        return
    with patch.applied(host):
        yield


def rights(host: Any, patch: Patch | None, judged: Mapping[str, Pictures]) -> dict[str, str]:
    """Which pictures of each set a changed model answers rightly."""
    with changed(host, patch):
        return {name: right(host, pictures) for name, pictures in judged.items()}


def _named(pictures: Pictures, *what: Any) -> str:
    """A digest of pictures, labels and settings."""
    content = hashlib.sha256(raw_bytes(pictures.images))
    content.update(raw_bytes(pictures.labels))
    content.update(json.dumps([VERSION, *what], sort_keys=True).encode())
    return content.hexdigest()[:16]


# -- the grounds -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """Parts of one start.

    Args:
        host: the start. parts: what each fine-tuning changed, by name. together: one fine-tuning on all their pictures.
        judged: pictures that nothing learned from, by name. few: labelled pictures for rules that learn from some.
    """

    host: Any
    parts: Mapping[str, Patch]
    together: Patch
    judged: Mapping[str, Pictures]
    few: Pictures


@lru_cache(maxsize=1)
def styles(start: str, parts: tuple[str, ...], pictures: int, epochs: float, judged: int, seed: int) -> Ground:
    """A reader of drawn subjects that knows one style, and one fine-tuning of it for each of several others.

    Cost: two minutes for the first call with a seed, on one core.
    """
    host = started("subjects", drawn(start, 1300, "start", seed), SUBJECTS, STYLES, seed)
    how, learnt = Tuning(epochs=epochs), {s: drawn(s, pictures, "part", seed) for s in parts}
    few = [one_each(drawn(s, 400, "few", seed), len(SUBJECTS)) for s in parts]
    return Ground(
        host=host,
        parts={s: tuned(host, p, how, seed) for s, p in learnt.items()},
        together=tuned(host, Pictures.cat(list(learnt.values())), how, seed),
        judged={s: drawn(s, judged, "judged", seed) for s in parts},
        few=Pictures.cat(few),
    )


STYLES = replace(classifiers.SMALL, width=16)


# -- corruptions -----------------------------------------------------------------------------------------


def corrupted(pictures: Pictures, how: str, *what: object) -> Pictures:
    """Pictures with noise, blur or little contrast; "clean" leaves them as they are."""
    x = CORRUPTIONS[how](pictures.pixels(), generator(VERSION, "merge", how, len(pictures), *what))
    return replace(pictures, images=(x.clamp(0, 1) * 255).round().byte())


CORRUPTIONS: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "clean": lambda x, draws: x,
    "noise": lambda x, draws: x + 0.15 * torch.randn(x.shape, generator=draws),
    "blur": lambda x, draws: F.avg_pool2d(F.pad(x, [2] * 4, mode="reflect"), 5, 1),
    "contrast": lambda x, draws: 0.3 * x + 0.35,
}


# -- photographs and digits ------------------------------------------------------------------------------

RECIPES = {
    "digits": replace(classifiers.SMALL, epochs=8, lr=3e-3, momentum=0.95, width=8, shift=1),
    "cifar": replace(classifiers.CIFAR, epochs=10, batch=128, width=16),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Half:
    """A model of a part of a task's pictures.

    Args:
        host: trained on `learnt`. more: further pictures, that it did not see. judged: of the task's test pictures.
    """

    host: Any
    learnt: Pictures
    more: Pictures
    judged: Pictures


@lru_cache(maxsize=2)
def half(task: str, learnt: int, more: int, judged: int, seed: int) -> Half:
    """A model of some of a task's pictures, which a seed chooses, and as many others as are wanted.

    Raises:
        BadRequest: the task's data are not here.

    Cost: a quarter of a minute to read the photographs, half a minute to train a model of 2,500 of them.
    """
    data = classifiers.TASKS[task]()
    rows = torch.randperm(len(data.train.samples), generator=generator(VERSION, "merge", task, seed))
    first, then = data.train.samples[rows[:learnt]], data.train.samples[rows[learnt : learnt + more]]
    host = started(f"half-{task}", first, data.train.classes, RECIPES[task], seed)
    return Half(host=host, learnt=first, more=then, judged=data.test.samples[:judged])
