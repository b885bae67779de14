"""Models of timm from the folders that its hub keeps: classifiers, and encoders where there are no classes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial
from importlib import import_module
from typing import Annotated, Any, TypedDict

from palimpsest.core import declared
from palimpsest.core.errors import Damaged, Unsupported
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.hosts.encoder import EncoderHost
from palimpsest.hosts.preprocessing import of_timm
from palimpsest.hosts.source import CONFIG, Family, Source, first_line, known
from palimpsest.hosts.weights import filled

Plain = bool | int | float | str | None | tuple[bool | int | float, ...]
Side = Annotated[int, declared.Within(1, 10_000)]
CALLING = re.compile(r"pretrained|checkpoint|cache|script|export|jit|feature|fn$|cls$")
"""Arguments of timm's by which it would read or fetch files, or build something else than the model."""


class Pretrained(TypedDict, total=False):
    """What is used of `pretrained_cfg`."""

    input_size: tuple[Side, Side, Side]
    num_classes: Annotated[int, declared.Within(0, 1_000_000)]
    classifier: str | tuple[str, ...] | None
    crop_pct: Annotated[float, declared.Within(0.01, 2)] | None
    crop_mode: str | None
    interpolation: str | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None


class Optional(TypedDict, total=False):
    """What may be absent in a folder's config.json."""

    num_classes: Annotated[int, declared.Within(0, 1_000_000)] | None
    model_args: dict[str, Plain] | None
    label_names: list[str] | None


class Described(Optional):
    """What is used of a folder's config.json."""

    architecture: Annotated[str, declared.Matching(r"\w+(\.\w+)?", "the name of a timm model")]
    pretrained_cfg: Annotated[Pretrained, declared.OPEN]


def _detect(files: Collection[str], config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return "architecture" in config and "pretrained_cfg" in config


def _load(source: Source) -> EncoderHost:
    folder = source.path
    config = known(source.config, Described, folder / CONFIG)
    try:
        timm: Any = import_module("timm")
    except ImportError as e:
        raise Unsupported(f"{folder} is a timm model; install timm to load it: pip install timm.") from e
    arguments = config.get("model_args") or {}
    for key, value in arguments.items():
        if CALLING.search(key) or (isinstance(value, str) and not re.fullmatch(r"\w*", value)):
            raise Damaged(f"{folder} builds its model with {declared.shown(key)} = {declared.shown(value)}; not run.")
    cfg = config["pretrained_cfg"]
    classes = config.get("num_classes")
    classes = cfg.get("num_classes", 0) if classes is None else classes
    anew = partial(timm.create_model, config["architecture"], pretrained=False, **{**arguments, "num_classes": classes})
    try:
        model = anew()
    except Exception as e:  # an unknown architecture, or options that this timm lacks
        raise Damaged(f"{folder} cannot be built by timm {timm.__version__}: {first_line(e)}.") from e
    model = filled(model, folder).to(source.device, source.dtype)
    common: dict[str, Any] = {"name": source.name, "preprocessing": of_timm(cfg), "folder": folder}
    if not classes:
        return EncoderHost(model, **common)
    head, names = cfg.get("classifier"), config.get("label_names")
    if not isinstance(head, str) or (names and len(names) != classes):
        raise Unsupported(
            f"{source.name} has {classes} classes, {len(names or ())} names and the heads {head!r}; expected a name "
            "for each and one head."
        )
    return ClassifierHost(model, labels=names or tuple(map(str, range(classes))), head=head, anew=anew, **common)


FAMILY = Family(_detect, _load)
