"""Whole checkpoints in one .safetensors file: Stable Diffusion and SDXL; others are told what to convert them with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from palimpsest.core.errors import PalimpsestError, Unsupported
from palimpsest.hosts.pipelines import assembled
from palimpsest.hosts.sd import SDHost
from palimpsest.hosts.sdxl import SDXLHost
from palimpsest.hosts.source import Family, Source, first_line, keys_of, quiet
from palimpsest.hosts.weights import entire

NETWORK = "model.diffusion_model."
SIGNS = {  # part of a tensor's name that only checkpoints of this pipeline have, the most telling first
    "conditioner.embedders.1.": "StableDiffusionXLPipeline",
    "joint_blocks.": "StableDiffusion3Pipeline",
    "double_blocks.": "FluxPipeline",
    f"{NETWORK}input_blocks.": "StableDiffusionPipeline",
}
HOSTS = {"StableDiffusionPipeline": SDHost, "StableDiffusionXLPipeline": SDXLHost}


def _detect(files: Collection[str], config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return not config and _pipeline(keys) is not None and all(name.endswith(".safetensors") for name in files)


def _pipeline(keys: Collection[str]) -> str | None:
    return next((name for sign, name in SIGNS.items() if any(sign in key for key in keys)), None)


def _load(source: Source) -> Any:
    import diffusers

    path, name = source.path, str(_pipeline(keys_of(source.path)))
    convert = (
        "Convert it to a folder once, on a machine with network: "
        f"diffusers.{name}.from_single_file({path.name!r}).save_pretrained('folder'), then load the folder."
    )
    if name not in HOSTS:
        raise Unsupported(f"{path} is a checkpoint of a {name}, which loads from a folder only. {convert}")
    cls = getattr(diffusers, name)
    try:
        with quiet():
            pipeline = entire(lambda: cls.from_single_file(str(path), local_files_only=True), path)
    except PalimpsestError:
        raise
    except Exception as e:  # diffusers looks for configuration and tokenizer in the local cache and fails variously
        raise Unsupported(
            f"{path} could not be loaded on its own ({first_line(e)}). A checkpoint file carries neither its "
            f"tokenizer nor its configuration. {convert}"
        ) from e
    return assembled(pipeline.to(source.dtype), source, HOSTS[name], None)


FAMILY = Family(_detect, _load)
