"""A small classifier of handwritten digits with everything that forgetting is judged by, trained in seconds.

`digits()` gives the training and test pictures, `base()` a model of all of them, `oracle()` one that never saw what
`digit_split()` forgets. Each is made once a process; `palimpsest.tiny.classifiers` has more tasks of the kind.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from palimpsest.core.pictures import Material
from palimpsest.data.forget import ForgetRequest, split
from palimpsest.data.read import Dataset
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.tiny import classifiers

TASK = classifiers.digits()
FORGET = TASK.forget[0]


def digits() -> tuple[Dataset, Dataset]:
    """Training (1,000) and test (797) pictures, 16 px, classes "0" to "9"."""
    return TASK.train, TASK.test


def digit_split(request: ForgetRequest = FORGET) -> Material:
    """The training digits, split by a request."""
    return split(TASK.train, request)


@lru_cache(maxsize=4)
def base(seed: int = 0) -> ClassifierHost:
    """Trained on all digits; about 96 % right on the test digits."""
    return _host(classifiers.trained(TASK, TASK.train.samples, seed=seed), f"digits-{seed}")


@lru_cache(maxsize=8)
def oracle(seed: int = 0, request: ForgetRequest = FORGET) -> ClassifierHost:
    """The same recipe without what the request forgets."""
    model = classifiers.trained(TASK, digit_split(request)["retain"], seed=seed)
    return _host(model, f"digits-without-{request.items[0]}-{seed}")


def _host(model: torch.nn.Module, name: str) -> ClassifierHost:
    return ClassifierHost(model, name=name, labels=TASK.train.classes, head="head", backbone="backbone")
