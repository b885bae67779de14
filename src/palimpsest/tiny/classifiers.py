"""Classification work with known truth, and its models: trained on everything, or without what a request forgets.

Each task is a data set with a test part, a recipe and the requests that systems are judged on. A model of a task is
trained on first use, in seconds to minutes, and kept in the cache; what is shipped is not trained again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palimpsest import tiny
from palimpsest.core.errors import BadRequest
from palimpsest.core.fingerprint import raw_bytes
from palimpsest.core.pictures import Pictures
from palimpsest.data.arrays import from_arrays
from palimpsest.data.dataset import Dataset
from palimpsest.data.forget import ForgetRequest, drawn, record, split
from palimpsest.data.read import read
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.hosts.factory import save
from palimpsest.hosts.load import load
from palimpsest.tiny.assemble import cache
from palimpsest.tiny.shelf import maker


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a classifier is trained; the same for a model and for its retrain oracles.

    Args:
        epochs: passes over the data.
        batch: pictures a step.
        lr: peak step size of Muon and AdamW; it rises over the first fifth of the steps and falls to zero.
        momentum: of Muon.
        weight_decay: of Muon, times the step size.
        average: decay of the exponential average of the weights, which is the result.
        width: channels of the network's first stage.
        smoothing: label smoothing, in [0, 1).
        shift: largest random shift in pixels, each way, on reflected borders.
        flip: whether pictures are mirrored in every second epoch, half of them first.
    """

    epochs: int = 18
    batch: int = 256
    lr: float = 1e-2
    momentum: float = 0.7
    weight_decay: float = 0.1
    average: float = 0.99
    width: int = 32
    smoothing: float = 0.1
    shift: int = 4
    flip: bool = True


CIFAR = Recipe()
SMALL = Recipe(epochs=10, batch=64, lr=5e-3, average=0.9, width=16, shift=2, flip=False)
FACTORY = "palimpsest.tiny.resnet:resnet"


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A data set, how a model of it is trained, and what such a model is asked to forget.

    Args:
        name: "cifar", "orl", "digits", "faces".
        train, test: pictures that the model learns from, and others of the same kind.
        recipe: of the model and of its retrain oracles.
        forget: the requests of the exam; `tune` is for choosing parameters, never for judging.
        shipped: name under which the model of seed 0 and the references are shipped.
    """

    name: str
    train: Dataset
    test: Dataset
    recipe: Recipe
    forget: tuple[ForgetRequest, ...]
    tune: tuple[ForgetRequest, ...]
    shipped: str = ""


def data_folder() -> Path:
    """Where real data lie: $PALIMPSEST_DATA, with cifar10_jpeg/ and orl_faces.npz.

    Raises:
        BadRequest: the variable is not set or names no folder.
    """
    named = os.environ.get("PALIMPSEST_DATA", "")
    if not named or not Path(named).is_dir():
        raise BadRequest(
            "Set PALIMPSEST_DATA to the folder with cifar10_jpeg/ (train.parquet, test.parquet) and orl_faces.npz."
        )
    return Path(named)


@lru_cache(maxsize=1)
def cifar() -> Task:
    """CIFAR-10 as JPEG: 50,000 + 10,000 photographs of ten classes, 32 px. Cost: 15 s to decode."""
    folder = data_folder() / "cifar10_jpeg"
    data = read(folder, split="train")
    return Task(
        name="cifar",
        train=data,
        test=read(folder, split="test"),
        recipe=CIFAR,
        forget=(ForgetRequest(kind="class", items=("cat",)), drawn(data, 0.1)),
        tune=(ForgetRequest(kind="class", items=("ship",)), drawn(data, 0.1, seed=1)),
        shipped="cifar",
    )


@lru_cache(maxsize=1)
def orl() -> Task:
    """Face recognition: 40 people, 7 + 3 grey pictures each, 32 px; the classes are the people."""
    data = read(data_folder() / "orl_faces.npz", size=32)
    learnt, other = held_out(data, 0.3)
    people = [f"s{i}" for i in range(1, 41)]
    return Task(
        name="orl",
        train=learnt,
        test=other,
        recipe=replace(SMALL, epochs=40, batch=32),
        forget=(ForgetRequest(kind="identity", items=tuple(people[i] for i in (2, 9, 16, 23, 36))),),
        tune=(ForgetRequest(kind="identity", items=tuple(people[i] for i in (4, 11, 18, 25, 32))),),
        shipped="orl",
    )


@lru_cache(maxsize=1)
def digits() -> Task:
    """Handwritten digits of scikit-learn: 1,000 + 797, drawn up to 16 px."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise BadRequest("The digits come with scikit-learn: install the extra [exam].") from e
    raw: Any = load_digits()
    images = np.kron(raw.images / 16 * 255, np.ones((1, 2, 2))).round().astype(np.uint8)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).numpy()
    parts = [from_arrays({"images": images[r], "labels": raw.target[r]}) for r in (order[:1000], order[1000:])]
    return Task(
        name="digits",
        train=parts[0],
        test=parts[1],
        recipe=replace(SMALL, epochs=8, lr=3e-3, momentum=0.95, width=8, shift=1),
        forget=(ForgetRequest(kind="class", items=("3",)), drawn(parts[0], 0.1)),
        tune=(ForgetRequest(kind="class", items=("7",)), drawn(parts[0], 0.1, seed=1)),
        shipped="digits",
    )


@lru_cache(maxsize=2)
def faces(people: int = 60, views: int = 45) -> Task:
    """Drawn people: which of four expressions each has, with identities to forget across the classes, 32 px.

    A third of each person's views are test pictures. As in MUFAC (ages) and MUCAC (expressions), the task is not to
    tell people apart: forgetting a person must not cost the task. A model learns its 1,800 pictures by heart
    (all but a few of them right, 92 % of others), so there is something to forget.

    Cost: 1.6 s to draw.
    """
    from palimpsest.worlds.faces import FACES

    draws = torch.Generator().manual_seed(17)
    labels = FACES.sample(people * views, generator=draws)
    labels["identity"] = torch.arange(people).repeat_interleave(views)
    drawings = FACES.draw(labels, generator=draws, captions=[""] * (people * views)).images
    small = torch.nn.functional.avg_pool2d(drawings, 2)
    arrays = {
        "images": (small * 255).round().byte().numpy(),
        "labels": labels["expression"].numpy(),
        "identity": np.array([FACES.vocabulary["identity"][i] for i in labels["identity"].tolist()]),
        "classes": np.array(FACES.vocabulary["expression"]),
    }
    kept = np.arange(people * views) % views >= views // 3
    names = FACES.vocabulary["identity"]
    return Task(
        name="faces",
        train=from_arrays({key: value if key == "classes" else value[kept] for key, value in arrays.items()}),
        test=from_arrays({key: value if key == "classes" else value[~kept] for key, value in arrays.items()}),
        recipe=SMALL,
        forget=(ForgetRequest(kind="identity", items=names[3:8]),),
        tune=(ForgetRequest(kind="identity", items=names[20:25]),),
        shipped="faces",
    )


TASKS = {"cifar": cifar, "orl": orl, "digits": digits, "faces": faces}


def model(task: Task, *, seed: int = 0, without: ForgetRequest | None = None) -> ClassifierHost:
    """A task's model, or its retrain oracle: the same recipe without what a request forgets.

    Equal arguments give equal weights. The first call trains and keeps a folder in the cache; models that are shipped
    are loaded.

    Raises:
        BadRequest: the request does not fit the data.
    """
    if seed == 0 and without is None and _is_shipped(task):
        return _classifier(tiny.path(task.shipped))
    folder = cache() / "classifiers" / f"{task.name}-{_key(task, seed, without)}"
    if not (folder / "config.json").is_file():
        kept = task.train.samples if without is None else split(task.train, without)["retain"]
        keep(trained(task, kept, seed=seed, checkpoint=folder / "run.safetensors"), task, folder)
    return _classifier(folder)


def trained(task: Task, samples: Pictures, *, seed: int, checkpoint: Path | None = None) -> torch.nn.Module:
    """A model of these samples by a task's recipe, in evaluation mode: what trains it is shipped with the models.

    Args:
        checkpoint: a file by which an interrupted training goes on.

    Raises:
        Unsupported: the package of the models is not installed.
    """
    train = maker("train_classifier").train
    return train(samples, len(task.train.classes), task.recipe, seed=seed, checkpoint=checkpoint)


def keep(model: torch.nn.Module, task: Task, folder: Path, *, about: Mapping[str, Any] | None = None) -> Path:
    """Writes a task's model as a folder that `palimpsest.load` reads."""
    arguments = {"classes": len(task.train.classes), "width": task.recipe.width}
    return save(
        model,
        folder,
        factory=FACTORY,
        arguments=arguments,
        labels=task.train.classes,
        head="head",
        backbone="backbone",
        about=about,
    )


def held_out(data: Dataset, share: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """The data in two parts; the second has this share of each class, rounded, chosen at random."""
    draws = torch.Generator().manual_seed(seed)
    out = torch.zeros(len(data.samples), dtype=torch.bool)
    for label in data.samples.labels.unique().tolist():
        rows = (data.samples.labels == label).nonzero().squeeze(1)
        out[rows[torch.randperm(len(rows), generator=draws)[: round(share * len(rows))]]] = True
    return replace(data, samples=data.samples[~out]), replace(data, samples=data.samples[out])


def digest(task: Task) -> str:
    """Of a task's training data and recipe: whether a shipped model is this task's."""
    return _key(task, 0, None)


def _is_shipped(task: Task) -> bool:
    if task.shipped not in tiny.names():
        return False
    config = json.loads((tiny.path(task.shipped) / "config.json").read_text(encoding="utf-8"))
    return config["about"].get("task") == digest(task)


def _key(task: Task, seed: int, without: ForgetRequest | None) -> str:
    content = hashlib.sha256(raw_bytes(task.train.samples.images))
    content.update(raw_bytes(task.train.samples.labels))
    what = {"data": content.hexdigest(), "recipe": asdict(task.recipe), "seed": seed}
    what["without"] = "" if without is None else record(task.train, without)["content"]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _classifier(folder: Path) -> ClassifierHost:
    host = load(folder)
    assert isinstance(host, ClassifierHost)
    return host
