"""A generator's tensors where they lie in its files, under the names that they have once it is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from palimpsest.core.errors import Damaged
from palimpsest.core.stored import Files, Piece, Place
from palimpsest.hosts.headers import Header, Shapes
from palimpsest.hosts.weights import refuse_absent, unprefixed

READER = "text_model."  # a level that versions of transformers have or do not have in a text encoder's names


class Rows:
    """Numbers of a file's rows, which stand in for its tensors while a converter gives them other names.

    Args:
        shapes: of the file's tensors by name.
    """

    def __init__(self, path: Path, shapes: Shapes) -> None:
        self._path, self._shapes, self._starts = path, shapes, dict[str, int]()
        at = 0
        for key, shape in shapes.items():
            self._starts[key] = at
            at += (shape[0] if shape else 1) + 1  # a number apart, so that no run goes from one tensor to the next
        self._keys = list(self._starts)
        self._bounds = torch.tensor(list(self._starts.values()))

    def under(self, prefix: str) -> dict[str, Tensor]:
        """For each tensor under a prefix, without it: (rows, 1, ...) int64."""
        return {key[len(prefix) :]: self._numbers(key) for key in self._keys if key.startswith(prefix)}

    def place(self, numbers: Tensor, shape: torch.Size) -> Place | None:
        """Where a tensor of this shape lies whose rows a converter gave these numbers; None where they do not fit."""
        ids = numbers.reshape(-1)
        breaks = (ids.diff() != 1).nonzero().squeeze(1) + 1
        pieces = [self._piece(run) for run in ids.tensor_split(breaks)]
        there = self._shapes[pieces[0].key]
        if numbers.ndim == 2 and numbers.shape[1] > 1:  # rows have become columns
            fits = len(pieces) == 1 and tuple(shape) == (there[1], there[0])
            return Place(shape, tuple(pieces), turned=True) if fits else None
        fits = len(ids) == (shape[0] if len(shape) else 1) and shape[1:].numel() == torch.Size(there[1:]).numel()
        return Place(shape, tuple(pieces)) if fits else None

    def _numbers(self, key: str) -> Tensor:
        shape = self._shapes[key]
        if not shape:
            return torch.tensor(self._starts[key])
        return torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) + self._starts[key]

    def _piece(self, run: Tensor) -> Piece:
        at = int(torch.searchsorted(self._bounds, run[0], right=True)) - 1
        key = self._keys[at]
        first = int(run[0]) - self._starts[key]
        return Piece(self._path, key, first, first + len(run))


def component(
    part: str, model: nn.Module, named: Mapping[str, Tensor], rows: Rows
) -> tuple[dict[str, Place], dict[str, Tensor]]:
    """A component's tensors in a checkpoint of one piece: (places, those that the file does not hold).

    Args:
        model: the component without memory. named: what the converter gave: numbers of rows; or a tensor that it made.

    Raises:
        Damaged: a tensor is missing, or has another shape.
    """
    due, places, made = model.state_dict(), dict[str, Place](), dict[str, Tensor]()
    for name in due:
        given = named.get(name)
        if given is None:
            continue
        if given.is_floating_point():
            made[f"{part}.{name}"] = given
        elif (place := rows.place(given, due[name].shape)) is not None:
            places[f"{part}.{name}"] = place
        else:
            raise Damaged(f"The file's {part}.{name} has another shape than {tuple(due[name].shape)}. Fetch it again.")
    where = rows._path
    _tied(part, model, places, where)
    refuse_absent([n for n in due if f"{part}.{n}" not in {**places, **made}], list(named), where)
    return places, made


def folder(part: str, model: nn.Module, files: Iterable[Path], where: Path) -> dict[str, Place]:
    """A component's tensors in the files of its folder.

    Raises:
        Damaged: a tensor is missing, or has another shape.
    """
    held: dict[str, tuple[Path, str, tuple[int, ...]]] = {}
    for file in files:
        shapes = Header.of(file).shapes
        held |= {bare(name): (file, key, shapes[key]) for key, name in unprefixed(list(shapes)).items()}
    places: dict[str, Place] = {}
    for name, t in model.state_dict().items():
        if bare(name) not in held:
            continue
        file, key, shape = held[bare(name)]
        if tuple(t.shape) != shape:
            raise Damaged(f"{file} has {key!r} of the shape {shape}, expected {tuple(t.shape)}. Fetch it again.")
        places[f"{part}.{name}"] = Place(t.shape, (Piece(file, key, 0, shape[0] if shape else 1),))
    _tied(part, model, places, where)
    refuse_absent([n for n in model.state_dict() if f"{part}.{n}" not in places], list(held), where)
    return places


def bare(name: str) -> str:
    return name.replace(READER, "", 1) if name.startswith(READER) else name


def joined(parts: Iterable[tuple[Mapping[str, Place], Mapping[str, Tensor]]]) -> Files:
    """Components as one model."""
    places: dict[str, Place] = {}
    made: dict[str, Tensor] = {}
    for held, constants in parts:
        places |= held
        made |= constants
    return Files(places, made)


def _tied(part: str, model: nn.Module, places: dict[str, Place], where: Path) -> None:
    """A tensor that a model has under several names lies in files under one of them."""
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # type: ignore[operator]
    by_tensor: dict[int, list[str]] = {}
    for name, t in model.state_dict(keep_vars=True).items():
        by_tensor.setdefault(id(t), []).append(f"{part}.{name}")
    for names in by_tensor.values():
        there = next((places[name] for name in names if name in places), None)
        if there is not None:
            places |= {name: there for name in names if name not in places}
