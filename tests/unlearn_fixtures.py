"""A small classifier of handwritten digits with everything that forgetting is judged by, trained in seconds.

`digits()` gives the training and test pictures, `base()` a model of all of them, `oracle()` one that never saw what
`digit_split()` forgets. Each is made once a process.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from palimpsest.core.samples import Split
from palimpsest.data.forget import ForgetRequest, split
from palimpsest.data.read import Dataset, from_arrays
from palimpsest.hosts.vision import ClassifierHost
from palimpsest.tiny.train_classifier import Recipe, train

RECIPE = Recipe(epochs=8, batch=64, lr=3e-3, width=8, shift=1, flip=False)
FORGET = ForgetRequest(kind="class", items=("3",))


@lru_cache(maxsize=1)
def digits() -> tuple[Dataset, Dataset]:
    """Training (1,000) and test (797) pictures, 16 px, classes "0" to "9"."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.kron(raw.images / 16 * 255, np.ones((1, 2, 2))).round().astype(np.uint8)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).numpy()
    parts = []
    for rows in (order[:1000], order[1000:]):
        parts.append(from_arrays({"images": images[rows], "labels": raw.target[rows]}))
    return parts[0], parts[1]


def digit_split(request: ForgetRequest = FORGET) -> Split:
    """The training digits, split by a request."""
    return split(digits()[0], request)


@lru_cache(maxsize=4)
def base(seed: int = 0) -> ClassifierHost:
    """Trained on all digits; about 97 % right on the test digits."""
    return _host(train(digits()[0].samples, 10, RECIPE, seed=seed), f"digits-{seed}")


@lru_cache(maxsize=8)
def oracle(seed: int = 0, request: ForgetRequest = FORGET) -> ClassifierHost:
    """The same recipe without what the request forgets; equal steps, so more epochs over fewer digits."""
    kept = digit_split(request).retain
    recipe = replace(RECIPE, epochs=max(1, round(RECIPE.epochs * 1000 / len(kept))))
    return _host(train(kept, 10, recipe, seed=seed), f"digits-without-{request.items[0]}-{seed}")


def _host(model: torch.nn.Module, name: str) -> ClassifierHost:
    return ClassifierHost(model, name=name, labels=digits()[0].classes, head="head", backbone="backbone")
