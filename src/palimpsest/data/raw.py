"""A picture as it lies in a data set, before it is decoded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from palimpsest.core.errors import BadRequest

IMAGES = ("image", "img")
LABELS = ("label", "labels", "fine_label")
IDENTITY = ("identity", "group")
CAPTIONS = ("caption", "text")
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
MOST_CLASSES = 1_000_000  # whole numbers above it are identifiers, not classes


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One picture.

    Args:
        name: what the data set calls it. open: gets its encoded bytes.
        label: as stored; None: it has none. mask: gets the encoded bytes of its mask; None: it has none.
        caption, columns: what else the data set says of it, in words.
    """

    name: str
    open: Callable[[], bytes]
    label: Any = None
    caption: str = ""
    mask: Callable[[], bytes] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


class Labels(NamedTuple):
    """(n,) indices into the classes, or float32 values without classes; counted: the classes have only numbers."""

    classes: tuple[str, ...]
    counted: bool
    labels: np.ndarray


def labels_of(values: Sequence[Any], classes: tuple[str, ...], names: Sequence[str], where: str) -> Labels:
    """What stored labels mean.

    Texts are classes of their own, in alphabetical order, unless all are numbers. Whole numbers count the classes from
    0, which are then called "0", "1", ...; other numbers are values of a regression.

    Raises:
        BadRequest: a picture without a label, texts among numbers, several labels for one picture, whole numbers that
            are no index into `classes`, values that are not finite.
    """
    missing = [name for name, value in zip(names, values, strict=True) if value is None or value == ""]
    if missing:
        raise BadRequest(
            f"{len(missing)} of {len(values)} pictures of {where} have no label, first {missing[0]}; give each one or "
            "remove it."
        )
    texts = sum(isinstance(value, str) for value in values)
    if texts and texts < len(values):
        raise BadRequest(f"The labels of {where} are texts and numbers mixed; give one kind.")
    if texts:
        numbers = [NUMBER.fullmatch(value.strip()) for value in values]
        if not all(numbers):
            return _named(values, classes, where)
        values = [float(number[0]) if number[1] or number[2] else int(number[0]) for number in numbers if number]
    try:
        labels = np.asarray(values)
    except (ValueError, OverflowError):
        labels = np.empty((len(values), 0))
    if labels.ndim != 1 or labels.dtype.kind not in "biuf":
        raise BadRequest(
            f"The labels of {where} are {labels.dtype} {labels.shape}; expected one whole number, an index into the "
            "classes, or one value for each picture. Data with several labels a picture are not supported."
        )
    return _counted(labels.astype(np.int64) if labels.dtype.kind == "b" else labels, classes, names, where)


def _named(values: Sequence[str], classes: tuple[str, ...], where: str) -> Labels:
    named = classes or tuple(sorted(set(values)))
    place = {name: i for i, name in enumerate(named)}
    foreign = next((v for v in values if v not in place), None)
    if foreign is not None:
        raise BadRequest(f"{where} has the label {foreign!r}, which is none of its classes: {', '.join(named[:20])}.")
    return Labels(named, False, np.asarray([place[v] for v in values], dtype=np.int64))


def _counted(labels: np.ndarray, classes: tuple[str, ...], names: Sequence[str], where: str) -> Labels:
    if labels.dtype.kind == "f":
        if classes:
            raise BadRequest(
                f"The labels of {where} are {labels.dtype}; expected whole numbers, indices into its classes."
            )
        if not np.isfinite(labels).all():
            row = int(np.flatnonzero(~np.isfinite(labels))[0])
            raise BadRequest(f"The value of {names[row]} in {where} is {labels[row]}; every value must be finite.")
        return Labels((), False, labels.astype(np.float32))
    most = len(classes) or MOST_CLASSES
    out = np.flatnonzero((labels < 0) | (labels >= most))
    if len(out):
        row, limit = int(out[0]), f"0 to {most - 1:,}"
        raise BadRequest(
            f"{len(out)} labels of {where} are out of range, first {labels[row]} of {names[row]}; expected {limit}. "
            "Correct them, or the list of classes that they index."
        )
    counted = tuple(map(str, range(int(labels.max()) + 1))) if not classes and len(labels) else ()
    return Labels(classes or counted, not classes, labels.astype(np.int64))
