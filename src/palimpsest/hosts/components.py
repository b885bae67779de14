"""A component's configuration, held against its class and its files' headers before memory is taken for anything."""

from __future__ import annotations

import inspect
import json
import math
import types
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import torch
from torch import nn

from palimpsest.core import declared
from palimpsest.core.errors import Damaged
from palimpsest.hosts.headers import Header, Shapes
from palimpsest.hosts.source import CONFIG, config_of, first_line, quiet

NUMBERS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def empty(cls: Any, config: Any) -> nn.Module:
    """A component without memory, on the meta device.

    Args:
        config: of a class of diffusers its fields; of one of transformers its configuration.
    """
    with quiet(), torch.device("meta"):
        return cls.from_config(config) if hasattr(cls, "from_config") else cls(config)


def refuse_unfit(cls: Any, folder: Path, files: Iterable[Path]) -> None:
    """Holds config.json against a component's class, and the layers that it makes against the tensors of its files.

    Args:
        cls: of diffusers or transformers, from a closed list. files: its safetensors files.

    Raises:
        Damaged: a field has another type than the class says, the class cannot be built so, or a layer would have
            another shape than its tensor. The message names the file and the field or the tensor.

    Cost: an empty model, and the files' headers.
    """
    config, where = config_of(folder), folder / CONFIG
    kind = getattr(cls, "config_class", None)  # of transformers
    hints = inspect.signature((kind or cls).__init__).parameters
    for key, value in config.items():
        if key in hints and not _fits(value, hint := hints[key].annotation):
            raise Damaged(
                f"{where} sets {key!r} to {declared.shown(value)}, which a {cls.__name__} does not take (it takes "
                f"{_said(hint)}). Fetch the model again."
            )
    try:
        due = _layers(cls, json.dumps(config))
    except Exception as e:  # whatever the libraries meet in values that contradict each other
        raise Damaged(
            f"{where} makes no {cls.__name__}: {first_line(e)}. It is damaged (fetch it again), or was saved by newer "
            "versions of diffusers or transformers than those installed here (upgrade them)."
        ) from e
    held = {name: shape for file in files for name, shape in Header.of(file).shapes.items()}
    odd = [name for name, shape in due.items() if held.get(name, shape) != shape]
    if odd:
        raise Damaged(
            f"{where} does not belong to the weights beside it: {odd[0]!r} and {len(odd) - 1} more tensors are of "
            f"shape {held[odd[0]]} and the like, by the configuration of {due[odd[0]]}. Fetch it again."
        )


def unfilled(cls: Any, folder: Path) -> nn.Module:
    """A component as its folder configures it, without memory."""
    return empty(cls, _fields(cls, config_of(folder)))


@lru_cache(maxsize=32)
def _layers(cls: Any, config: str) -> Shapes:
    """The shapes that a configuration makes; kept, since oracles and edited models have that of the untouched one."""
    return {name: tuple(t.shape) for name, t in empty(cls, _fields(cls, json.loads(config))).state_dict().items()}


def _fields(cls: Any, config: dict[str, Any]) -> Any:
    """A configuration as a class takes it."""
    kind = getattr(cls, "config_class", None)
    # Of transformers; where models of two kinds are saved as one, each has its part.
    return config if kind is None else kind.from_dict(config.get(kind.base_config_key) or config)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; what says nothing about plain JSON holds everything."""
    origin, of = get_origin(hint), get_args(hint)
    if value is None:  # published configurations leave out what they do not use by it
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in of if part is not types.NoneType)
    if origin is Literal:
        return value in of
    if hint is bool or hint is str:
        return isinstance(value, hint)
    if hint is int:
        return type(value) is int
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint in (list, tuple, Sequence) or origin in (list, tuple):
        return isinstance(value, list) and all(_fits(part, of[0]) for part in value if of)
    return True


def _said(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_said(part) for part in get_args(hint) if part is not types.NoneType)
    return NUMBERS.get(hint, f"a list of {_said(get_args(hint)[0])}" if get_args(hint) else "something else")
