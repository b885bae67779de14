"""Pictures reach a network as its own image processor, or timm's transform, would send them; or by name not at all."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from palimpsest.core.errors import Damaged, Unsupported
from palimpsest.hosts.preprocessing import PLAIN, SPECIAL, Preprocessing, like, of_processor, of_timm

LISTED = {f"{kind}ImageProcessor" for kind in (*PLAIN, *SPECIAL)}
SHAPES = [(37, 53), (64, 64), (90, 41), (12, 9)]  # (height, width): odd, square, upright, smaller than what is cut


def classes() -> dict[str, Any]:
    """Every image processor of transformers that needs no torchvision, by the name that files give it."""
    found: dict[str, Any] = {}
    models = Path(transformers.__file__).parent / "models"
    for package in pkgutil.iter_modules([str(models)]):
        for path in sorted((models / package.name).glob("image_processing*.py")):
            if "PilBackend" not in path.read_text() and "BaseImageProcessor)" not in path.read_text():
                continue
            try:
                module = importlib.import_module(f"transformers.models.{package.name}.{path.stem}")
            except ImportError:
                continue  # needs a package that is not here
            for name, cls in inspect.getmembers(module, inspect.isclass):
                if name.endswith(("ImageProcessor", "ImageProcessorPil")) and cls.__module__ == module.__name__:
                    found[name.removesuffix("Pil")] = cls
    return found


EVERY = classes()
MORE: list[dict[str, Any]] = [
    {},
    {"size": {"height": 20, "width": 30}},
    {"size": {"shortest_edge": 24}},
    {"size": 24},
    {"size": {"shortest_edge": 24}, "crop_size": {"height": 15, "width": 20}, "do_center_crop": True},
    {"size": {"shortest_edge": 400}},
    {"crop_pct": 0.7, "size": {"shortest_edge": 32}},
    {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 31, "width": 18}},
    {"do_normalize": False},
    {"do_rescale": False},
    {"rescale_factor": 1 / 127.5, "rescale_offset": True},
    {"include_top": False, "do_flip_channel_order": False},
    {"resample": 0},
    {"resample": 2},
    {"resample": 1},
    {"size": {"longest_edge": 24}},
    {"size": {"shortest_edge": 24, "longest_edge": 30}},
    {"do_pad": True, "pad_size": {"height": 300, "width": 300}},
    {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
]


def picture(height: int, width: int) -> Image.Image:
    """Smooth colours with noise, so that filters and offsets by one pixel both show.

    None is so near to black or white that a filter overshoots: Pillow cuts that between rows and columns, and which
    come first depends on its version and on the shape.
    """
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) * 255 / (height + width)], -1)
    noise = np.random.default_rng(height * width).integers(-20, 20, smooth.shape)
    return Image.fromarray((60 + smooth * 0.5 + noise).astype(np.uint8))


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255


def far(preprocessing: Preprocessing, ours: Tensor, theirs: Tensor) -> float:
    """The largest difference in 255ths of a picture's range: theirs are rounded to 8 bits twice, rows and columns."""
    std = torch.tensor(preprocessing.std).view(-1, 1, 1)
    return float(((ours - theirs) * std).abs().max() * 255)


def answer(processor: Any) -> tuple[Preprocessing | None, str]:
    """Its steps, or why there are none."""
    try:
        return like(processor), ""
    except Unsupported as e:
        return None, str(e)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_every_image_processor_is_equalled_or_refused_by_name(name: str) -> None:
    equal = 0
    for settings in MORE:
        try:
            processor = EVERY[name](**settings)
        except Exception:  # what this class itself does not take
            continue
        preprocessing, words = answer(processor)
        if preprocessing is None:
            assert name in words
            continue
        assert name in LISTED
        for shape in SHAPES if settings else SHAPES[:1]:
            image = picture(*shape)
            try:
                theirs = torch.tensor(np.asarray(processor(image, return_tensors="np")["pixel_values"]))
            except Exception:  # settings that fail on pictures
                continue
            ours = preprocessing(tensor(image))
            assert ours.shape == theirs.shape, (name, settings, shape)
            assert far(preprocessing, ours, theirs) <= 1.7, (name, settings, shape)
            equal += 1
    assert equal > 20 if name in LISTED else equal == 0


def test_every_listed_image_processor_was_compared() -> None:
    assert set(EVERY) >= LISTED


def test_a_processor_is_read_from_its_folder_by_its_own_class(tmp_path: Path) -> None:
    def read(**config: Any) -> Preprocessing:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        return of_processor(tmp_path)

    convnext = read(image_processor_type="ConvNextImageProcessor", size={"shortest_edge": 224}, crop_pct=0.875)
    assert (convnext.size, convnext.crop, convnext.side) == (256, (224, 224), (256, 256))
    assert convnext.mean == (0.5, 0.5, 0.5)  # absent in the file: the class's own
    old = read(feature_extractor_type="CLIPFeatureExtractor", size=224, crop_size=224)
    assert (old.size, old.crop, old.mode) == (224, (224, 224), "bicubic")
    with pytest.raises(Unsupported, match="DonutImageProcessor"):
        read(image_processor_type="DonutImageProcessor")
    for broken in (
        {"image_processor_type": "NoSuchProcessor"},
        {"image_processor_type": "ViTImageProcessor", "size": "large"},
        {"image_processor_type": "ViTImageProcessor", "image_mean": "grey"},
        {"image_processor_type": "ViTImageProcessor", "image_std": [0, 0, 0]},
        {"image_processor_type": "ViTImageProcessor", "rescale_factor": "x"},
        {"image_processor_type": "ViTImageProcessor", "size": {"height": -3, "width": 10**9}},
        {"auto_map": {"AutoImageProcessor": "mine.Processor"}},
    ):
        with pytest.raises((Damaged, Unsupported)):
            read(**broken)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(Damaged):
        of_processor(tmp_path)


def by_timm(image: Image.Image, config: dict[str, Any]) -> Tensor:
    """timm.data.transforms_factory.transforms_imagenet_eval, as its source has it, written with Pillow alone.

    `center`: Resize(floor(side / crop_pct)) of the shorter side, then CenterCrop; `squash`: both sides. CenterCrop of
    torchvision: int(round((side - crop) / 2.0)); Resize of torchvision: int(size * long / short).
    """
    height, width = config["input_size"][-2:]
    grown = [math.floor(side / config["crop_pct"]) for side in (height, width)]
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    if config["crop_mode"] == "squash":
        size = (grown[1], grown[0])
    else:
        w, h = image.size
        size = (grown[0], int(grown[0] * h / w)) if w <= h else (int(grown[0] * w / h), grown[0])
    image = image.resize(size, filters[config["interpolation"]])
    left, top = round((image.size[0] - width) / 2.0), round((image.size[1] - height) / 2.0)
    cut = tensor(image)[..., top : top + height, left : left + width]
    return (cut - torch.tensor(config["mean"]).view(-1, 1, 1)) / torch.tensor(config["std"]).view(-1, 1, 1)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize(("side", "share"), [(32, 0.875), (24, 0.95), (17, 1.0), (33, 0.9)])
def test_timm_models_see_what_timm_would_show_them(side: int, share: float, crop_mode: str, interpolation: str) -> None:
    config = {
        "input_size": [3, side, side],
        "crop_pct": share,
        "crop_mode": crop_mode,
        "interpolation": interpolation,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.4],
    }
    preprocessing = of_timm(config)
    for shape in SHAPES[:3]:
        image = picture(*shape)
        assert far(preprocessing, preprocessing(tensor(image)), by_timm(image, config)) <= 1.7, shape


def test_what_timm_leaves_out_of_a_configuration_is_its_default() -> None:
    assert of_timm({}) == of_timm(
        {
            "input_size": [3, 224, 224],
            "crop_pct": 0.875,
            "crop_mode": "center",
            "interpolation": "bicubic",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        }
    )
    for odd in ({"crop_mode": "border"}, {"interpolation": "lanczos"}, {"input_size": [3, 224, 192]}):
        with pytest.raises(Unsupported, match=r"not supported|supported are"):
            of_timm(odd)


def test_preparing_is_differentiable() -> None:
    images = torch.rand(1, 3, 20, 30, requires_grad=True)
    Preprocessing(size=16, crop=(12, 12), mode="bicubic")(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
