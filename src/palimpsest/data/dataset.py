"""What was read of a data set, and its classes as a model calls them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from palimpsest.core.errors import BadRequest
from palimpsest.core.pictures import Pictures
from palimpsest.ops.names import listed, meant, number, only

NAMED = 5  # files that a sentence names


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """What was read.

    Args:
        samples: the pictures, with their labels.
        classes: the classes' names; a label is an index into them. Empty: the labels are values, or there are none.
        counted: the data do not name their classes, they only count them from 0; the names are those numbers.
        matched: (the data's name, the model's label) of each class that the two call differently.
        skipped: pictures that could not be decoded, each with the reason.
        left_out: files that are no pictures of the data, each with the reason.
        warned: pictures that were decoded with a warning, each with it.
    """

    samples: Pictures
    classes: tuple[str, ...]
    counted: bool = False
    matched: tuple[tuple[str, str], ...] = ()
    skipped: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()

    def told(self) -> list[str]:
        """What a user should see of it before work begins, a line each."""
        lines = [f"read     {len(self.samples)} pictures{f' of {len(self.classes)} classes' if self.classes else ''}"]
        facts = [
            *(["captions"] if self.samples.captions else []),
            *(["masks"] if self.samples.masks is not None else []),
        ]
        facts += self.samples.columns
        lines += [f"with     {', '.join(facts)}"] if facts else []
        lines += [f"classes  {', '.join(f'{a} is {b}' for a, b in self.matched)}"] if self.matched else []
        for what, names in (("skipped", self.skipped), ("left out", self.left_out), ("warned", self.warned)):
            shown = "; ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")
            lines += [f"{what:<8} {len(names)}: {shown}"] if names else []
        return lines


def aligned(data: Dataset, labels: Sequence[str], called: str) -> Dataset:
    """The same data with a model's labels as classes.

    Names are matched as `ops.names.meant` says, never by their order. Where the data have numbers and the model has
    words, a number is the model's label of that number, counted from 0. Data with values, and data for a model with
    one output, keep their values.

    Args:
        labels: the model's.
        called: the model's name, for messages.

    Raises:
        BadRequest: no labels, a class that the model does not have, two that are one to the model, or numbers that may
            be names as well as counts.
    """
    samples = data.samples
    if not len(samples.labels):
        raise BadRequest("These pictures have no labels; give one folder of pictures for each class, or labels.")
    if samples.labels.is_floating_point():
        return data
    if len(labels) == 1:
        return valued(data)
    if data.classes == tuple(labels) and not data.counted:
        return data
    present = samples.labels.unique().tolist()
    names = [data.classes[i] for i in present]
    places = _counts(present, labels, called) if data.counted else _names(names, labels, called)
    twice = [place for place, times in Counter(places).items() if times > 1]
    if twice:
        same = " and ".join(repr(name) for name, place in zip(names, places, strict=True) if place == twice[0])
        raise BadRequest(
            f"The data's classes {same} are one class of {called}, {labels[twice[0]]!r}; join or rename them."
        )
    order = torch.zeros(len(data.classes), dtype=torch.int64)
    order[present] = torch.tensor(places)
    told = tuple((name, labels[p]) for name, p in zip(names, places, strict=True) if name != labels[p])
    turned = replace(samples, labels=order[samples.labels])
    return replace(data, samples=turned, classes=tuple(labels), counted=False, matched=told)


def valued(data: Dataset) -> Dataset:
    """The same data with whole numbers as values of a regression.

    Raises:
        BadRequest: the data have classes with names.
    """
    if data.classes and not data.counted:
        raise BadRequest(
            f"The data have classes ({listed(data.classes)}), and the model predicts a value, not a class."
        )
    return replace(data, samples=replace(data.samples, labels=data.samples.labels.float()), classes=(), counted=False)


def _names(names: Sequence[str], labels: Sequence[str], called: str) -> list[int]:
    """The model's place of each name."""
    numbers = [number(name) for name in names]
    if None not in numbers and not any(number(label) is not None for label in labels):
        return _counts([n for n in numbers if n is not None], labels, called)
    unknown = [name for name in names if not meant(name, labels)]
    if unknown:
        raise BadRequest(
            f"The data's class {unknown[0]!r} is none of the {len(labels)} classes of {called}: {listed(labels)}. "
            "Classes are matched by name, never by their order. Name the data's classes as the model does, or write "
            "their names into the model's id2label; or give the model that learned from these data."
        )
    return [only(name, labels, "class", called) for name in names]


def _counts(numbers: Sequence[int], labels: Sequence[str], called: str) -> list[int]:
    """The model's place of each number: counted from 0, unless its labels are numbers themselves."""
    counted = all(n < len(labels) for n in numbers)
    named = [meant(str(n), labels) for n in numbers]
    by_name = [places[0] for places in named if len(places) == 1]
    if len(by_name) < len(numbers):
        if counted:
            return list(numbers)
        raise BadRequest(
            f"The data's class {max(numbers)} is none of the {len(labels)} classes of {called}, which are counted from "
            f"0: {listed(labels)}. Do the data count from 1? Name their classes as the model does."
        )
    if counted and by_name != list(numbers):
        n = next(n for n, place in zip(numbers, by_name, strict=True) if n != place)
        raise BadRequest(
            f"The data's class {n} may be the label called {str(n)!r} of {called}, or its label number {n}, "
            f"{labels[n]!r}. Name the data's classes as the model does (folders, or names in the file)."
        )
    return by_name
