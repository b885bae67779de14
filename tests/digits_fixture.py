"""A small convolutional classifier of scikit-learn's digits, and its data, for tests."""

from __future__ import annotations

from functools import lru_cache

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from palimpsest.core.concept import Concept, Request
from palimpsest.core.pictures import Material, Pictures
from palimpsest.hosts.classifiers import ClassifierHost

REQUEST = Request(target=(Concept(name="3", kind="class", labels=(3,)),))


class Net(nn.Module):
    """Two convolutions with batch norm, mean over the picture, a linear head."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
        )
        self.head = nn.Linear(32 * 16, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@lru_cache(maxsize=1)
def digits() -> tuple[Pictures, Pictures]:
    """Training and test samples: 8x8 pictures of ten classes; people are made up, ten to each."""
    raw = load_digits()
    images = torch.tensor(raw.images / 16 * 255).round().byte()[:, None].expand(-1, 3, -1, -1).contiguous()
    labels = torch.tensor(raw.target)
    n = len(labels)
    names, people = tuple(map(str, range(n))), tuple(f"hand{i % 30}" for i in range(n))
    every = Pictures(images=images, labels=labels, names=names, columns={"identity": people})
    return every[torch.arange(n) % 4 != 0], every[torch.arange(n) % 4 == 0]


def trained(samples: Pictures, outputs: int = 10, steps: int = 150) -> ClassifierHost:
    """A fresh network trained on samples, seeded."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        net = Net(outputs)
        optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(steps):
            rows = torch.randint(len(samples), (128,))
            out, y = net(samples.pixels(rows)), samples.labels[rows]
            loss = functional.cross_entropy(out, y) if outputs > 1 else (out[:, 0] - y).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    labels = [str(i) for i in range(outputs)] if outputs > 1 else ["value"]
    return ClassifierHost(net, name="digits", labels=labels, head="head", backbone="body")


@lru_cache(maxsize=1)
def classifier() -> ClassifierHost:
    return trained(digits()[0])


@lru_cache(maxsize=1)
def regressor() -> tuple[ClassifierHost, Material]:
    """A host that predicts how much ink a digit has, in [0, 10], and a split that forgets those above 7."""
    train = digits()[0]
    ink = train.pixels().mean((1, 2, 3))
    values = (ink - ink.min()) / (ink.max() - ink.min()) * 10
    samples = Pictures(images=train.images, labels=values.float(), names=train.names, columns=train.columns)
    split = Material({"forget": samples[values > 7], "retain": samples[values <= 7]})
    return trained(samples, outputs=1), split


def class_split(label: int = 3) -> Material:
    train = digits()[0]
    return Material({"forget": train[train.labels == label], "retain": train[train.labels != label]})


def sample_split(n: int = 60) -> Material:
    train = digits()[0]
    chosen = torch.arange(len(train)) % (len(train) // n) == 0
    return Material({"forget": train[chosen], "retain": train[~chosen]})


def accuracy(host: ClassifierHost, samples: Pictures) -> float:
    """Percent."""
    with torch.no_grad():
        return 100 * float((host.logits(samples.pixels()).argmax(1) == samples.labels).float().mean())
