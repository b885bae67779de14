"""Whole checkpoints in one .safetensors file: Stable Diffusion 1 and 2, SDXL, Stable Diffusion 3 and Flux.1.

Nothing is looked up in the network and no configuration is asked for: sizes come from the tensors, the rest is known by
family (`hosts.checkpoints`). Tensors get the names of diffusers by its own converters. Tokenizers, and components that
the file does not hold, come from elsewhere (`hosts.vocabulary`, the folder that the user names).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from palimpsest.core import declared
from palimpsest.core.errors import BadRequest, Damaged, PalimpsestError, Unsupported
from palimpsest.hosts import files, pipelines, shapes
from palimpsest.hosts.checkpoints import FLUX, NETWORK, SD1, SD2, SD3, SDXL, Kind, Reader, recognised
from palimpsest.hosts.components import empty
from palimpsest.hosts.flux import FluxHost
from palimpsest.hosts.headers import Header
from palimpsest.hosts.sd import SDHost
from palimpsest.hosts.sd3 import SD3Host
from palimpsest.hosts.sdxl import SDXLHost
from palimpsest.hosts.source import INDEX, Family, Source, first_line, quiet
from palimpsest.hosts.vocabulary import tokenizer
from palimpsest.hosts.weights import refuse_absent, unprefixed

AUTOENCODERS = ("first_stage_model.", "vae.")
HOSTS: Mapping[str, Callable[..., Any]] = {
    SD1.name: SDHost, SD2.name: SDHost, SDXL.name: SDXLHost, SD3.name: SD3Host, FLUX.name: FluxHost,
}  # fmt: skip
SIGNS = ("input_blocks.0.0.weight", "joint_blocks.0.", "double_blocks.0.")
PREDICTIONS = ("epsilon", "v_prediction")
SAID = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
IS_NOISE, IS_NONE, DENOISES = 0.9, 0.5, 0.25
"""Cosines of the network's output with the noise in its input, see `_told_by_noise`."""


def _detect(files: Collection[str], config: Mapping[str, Any], keys: Collection[str]) -> bool:
    here = any(sign in key for sign in SIGNS for key in keys)
    return not config and here and all(name.endswith(".safetensors") for name in files)


class _Given(NamedTuple):
    """What is at hand to build a pipeline out of: a file, and how the model is wanted."""

    header: Header
    kind: Kind
    source: Source
    read: Callable[[str], dict[str, Tensor]]
    """The tensors under a prefix, without it: themselves, or what stands in for them (`hosts.files.Rows`)."""


def _load(source: Source) -> Any:
    import diffusers

    if source.path.is_dir():
        (path,) = sorted(source.path.glob("*.safetensors"))[:1]
        raise Unsupported(f"{source.path} is a folder around checkpoints in one file; give the file itself: {path}.")
    header = Header.of(source.path)
    given = _Given(header, recognised(header), source, partial(_state, source))
    parts: dict[str, Any] = {}
    try:
        for part, how in given.kind.readers.items():
            parts[part], parts[part.replace("text_encoder", "tokenizer")] = _reader(given, part, how)
        parts[given.kind.network] = _filled(given, _network(given))
        held = _autoencoder(given)
        parts["vae"] = _from_folder(given, "vae", pipelines.AUTOENCODER) if held is None else _filled(given, held)
        return _assembled(given, parts, getattr(diffusers, given.kind.pipeline))
    except PalimpsestError:
        raise
    except Exception as e:  # converters index tensors by names that a damaged or foreign file lacks
        raise Damaged(
            f"{source.path} looks like a checkpoint of {given.kind.name} and cannot be read as one "
            f"({type(e).__name__}: {first_line(e)}): tensors are missing or have other shapes. Fetch it again."
        ) from e


def _assembled(given: _Given, parts: Mapping[str, Any], cls: Any) -> Any:
    """The pipeline as a host; what it predicts is told by the option, by the file, or by what it does with noise."""
    kind, source = given.kind, given.source
    with quiet():
        takes = inspect.signature(cls.__init__).parameters
        more: dict[str, Any] = {p: None for p in ("safety_checker", "feature_extractor", "image_encoder") if p in takes}
        if "requires_safety_checker" in takes:
            more["requires_safety_checker"] = False

        def host(prediction: str) -> Any:
            pipeline = cls(**parts, **more, scheduler=_scheduler(given, prediction))
            return pipelines.assembled(pipeline, source, HOSTS[kind.name], None)

        if kind in (SD3, FLUX) and source.prediction:
            raise BadRequest(f"{source.name} is {kind.name}, which predicts flow; leave out --prediction.")
        if kind is FLUX:
            distilled = parts[kind.network].config.guidance_embeds
            return host("flow" if distilled else "flow, undistilled")
        if kind is SD3:
            return host("flow")
        told = source.prediction or _said(given.header)
        found = host(told or "epsilon")
        prediction = told or _told_by_noise(found, source)
        if kind is SD2 and prediction == "v_prediction":
            parts[kind.network].register_to_config(sample_size=96)  # the model of 768 pixels
        return found if prediction == found.prediction else host(prediction)


def _scheduler(given: _Given, prediction: str) -> Any:
    import diffusers

    name, config = given.kind.schedulers[prediction]
    if "ztsnr" in given.header.shapes and "rescale_betas_zero_snr" in _takes(getattr(diffusers, name)):
        config = {**config, "rescale_betas_zero_snr": True}  # trained with a last step of noise alone
    return getattr(diffusers, name)(**config)


def _takes(cls: Any) -> Collection[str]:
    return inspect.signature(cls.__init__).parameters


def _said(header: Header) -> str:
    """What the network predicts by the file's own word, a mark among its tensors or modelspec's; "": it says none."""
    if "v_pred" in header.shapes:
        return "v_prediction"
    return SAID.get(header.metadata.get("modelspec.prediction_type", "").casefold(), "")


def _told_by_noise(host: Any, source: Source) -> str:
    """Whether a network predicts noise or velocity, by the cosine of what it gives with the noise in its input.

    At the last time the input is nearly noise alone: who predicts noise gives it back, who predicts velocity gives
    minus the picture that it expects. Early, where noise is the smaller part, both give nearly the noise; a network
    that does not was trained for neither. Cost: two forwards of two rows at a quarter of the sides.

    Raises:
        BadRequest: it does neither; the message asks for --prediction.
    """
    times, side = host.pipeline.scheduler.config.num_train_timesteps, max(8, host.denoiser.config.sample_size // 4)
    noise = torch.randn(2, host.channels, side, side, generator=torch.Generator().manual_seed(0)).to(host.device)
    cosines = []
    with torch.no_grad():
        for time in (times - 1, times // 4):
            t = torch.full((2,), time, device=host.device)
            _, sigma = host.noise(t)
            out = host.predict(sigma * noise, t, host.null(2)).float()
            cosines.append(float(torch.cosine_similarity(out.flatten(1), noise.flatten(1)).mean()))
    late, early = cosines
    if late > IS_NOISE:
        return "epsilon"
    if late < IS_NONE and early > DENOISES:
        return "v_prediction"
    raise BadRequest(
        f"Whether {source.name} predicts noise or velocity cannot be told from the file (given noise, it returns it "
        f"with a cosine of {late:.2f} at the last time and {early:.2f} at an early one). Say it: --prediction epsilon "
        "(Stable Diffusion 1, 2-base, SDXL), or --prediction v_prediction (2.x at 768 pixels, models called v-pred)."
    )


# -- components ------------------------------------------------------------------------------------------------


class _Named(NamedTuple):
    """A component as the file has it: its class and configuration, and tensors under the names of diffusers."""

    cls: Any
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def _network(given: _Given) -> _Named:
    import diffusers
    from diffusers.loaders import single_file_utils as converters

    kind, header = given.kind, given.header
    prefix = NETWORK if header.prefix(NETWORK) is not None else ""
    config = kind.configure(header.under(prefix))
    state = given.read(prefix)
    if kind is SD3:
        named = converters.convert_sd3_transformer_checkpoint_to_diffusers(state)
    elif kind is FLUX:
        named = converters.convert_flux_transformer_checkpoint_to_diffusers(state)
    else:
        state = {NETWORK + key: value for key, value in state.items()}
        named = converters.convert_ldm_unet_checkpoint(state, config)
    return _Named(getattr(diffusers, kind.network_cls), config, named)


def _autoencoder(given: _Given) -> _Named | None:
    """None where the file holds none."""
    import diffusers
    from diffusers.loaders import single_file_utils as converters

    prefix = given.header.prefix(*AUTOENCODERS)
    if prefix is None:
        return None
    config = {**shapes.autoencoder(given.header.under(prefix)), **given.kind.latents}
    return _Named(diffusers.AutoencoderKL, config, converters.convert_ldm_vae_checkpoint(given.read(prefix), config))


def _reader(given: _Given, part: str, how: Reader) -> tuple[Any, Any]:
    """A text encoder and its tokenizer; None for both where the family does without and there is none."""
    name = part.replace("text_encoder", "tokenizer")
    if not given.header.under(how.prefix):
        if part in given.kind.optional and not _lies_in_folder(given, part):
            return None, None
        encoder = _from_folder(given, part, pipelines.T5 if how.layout == "t5" else pipelines.CLIP)
        rows = encoder.get_input_embeddings().num_embeddings
        return encoder, tokenizer(given.source, name, how.layout, how.padding, rows)
    named = _text_encoder(given, how)
    words = tokenizer(given.source, name, how.layout, how.padding, named.config["vocab_size"])
    ends = (
        {} if how.layout == "t5" else {k: getattr(words, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    )
    return _filled(given, named._replace(config={**named.config, **ends})), words


def _text_encoder(given: _Given, how: Reader) -> _Named:
    import transformers
    from diffusers.loaders import single_file_utils as converters

    held = given.header.under(how.prefix)
    old = how.layout == "clip" and "embeddings.token_embedding.weight" in held  # merges of old tools drop a part
    config = how.config({f"text_model.{key}": shape for key, shape in held.items()} if old else held)
    state = given.read(how.prefix)
    state = {f"text_model.{key}": value for key, value in state.items()} if old else state
    cls = getattr(transformers, how.cls)
    if how.layout == "open_clip":
        layers = config["num_hidden_layers"]
        used = {k: v for k, v in state.items() if not k.startswith(f"transformer.resblocks.{layers}.")}
        state = converters.convert_open_clip_checkpoint(empty(cls, cls.config_class(**config)), used, prefix="")
    elif "WithProjection" in how.cls and "text_projection.weight" not in state:
        state["text_projection.weight"] = torch.eye(config["hidden_size"])  # as SD3's own code has it
    return _Named(cls, config, state)


def stored(source: Source) -> files.Files:
    """The tensors of a whole checkpoint under the names of diffusers, where they lie.

    The converters are given numbers of rows for the weights, so that where each number ends tells where a row comes
    from: fused projections that are split, halves that change places, and the matrices that are turned.

    Raises:
        Unsupported: a component is not in the file.
    """
    header = Header.of(source.path)
    rows = files.Rows(source.path, header.shapes)
    given = _Given(header, recognised(header), source, rows.under)
    parts: dict[str, _Named] = {given.kind.network: _network(given)}
    for part, how in given.kind.readers.items():
        if header.under(how.prefix):
            parts[part] = _text_encoder(given, how)
        elif part not in given.kind.optional:
            raise _lacking(given, part)
    vae = _autoencoder(given)
    if vae is None:
        raise _lacking(given, "vae")
    return files.joined(files.component(part, *_unfilled(named), rows) for part, named in {**parts, "vae": vae}.items())


def _lies_in_folder(given: _Given, part: str) -> bool:
    folder = given.source.tokenizer
    return folder is not None and (folder / part / "config.json").is_file()


def _from_folder(given: _Given, part: str, classes: tuple[str, ...]) -> Any:
    """A component that the file lacks, from the pipeline's folder that the user named.

    Raises:
        Unsupported: there is none.
    """
    folder = given.source.tokenizer
    if folder is None or not _lies_in_folder(given, part) or not (folder / INDEX).is_file():
        raise _lacking(given, part)
    index = declared.read(folder / INDEX, dict, "the index of a pipeline")
    return pipelines.component(replace(given.source, path=folder, config=index), part, classes)


def _lacking(given: _Given, part: str) -> Unsupported:
    return Unsupported(
        f"{given.source.path} is a checkpoint of {given.kind.name} without its {part}. Give the folder of a pipeline "
        "of the same family that has it, --tokenizer FOLDER (its tokenizers are then used, too), or a file of the "
        "whole model."
    )


def _state(source: Source, prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it, as the precision that is wanted. Cost: where the file has that precision,
    its pages."""
    wanted = source.dtype
    with safe_open(source.path, framework="pt") as held:
        keys = [key for key in held.keys() if key.startswith(prefix)]  # noqa: SIM118 (no dict)
        tensors = {key[len(prefix) :]: held.get_tensor(key) for key in keys}
    return {key: t.to(wanted) if t.is_floating_point() else t for key, t in tensors.items()}


def _unfilled(named: _Named) -> tuple[Any, dict[str, Tensor]]:
    """A component without memory, and the file's tensors as it calls them."""
    config = dict(named.config) if hasattr(named.cls, "from_config") else named.cls.config_class(**named.config)
    model = empty(named.cls, config)
    wrapped = any(name.startswith(files.READER) for name in model.state_dict())
    return model, {k if wrapped else files.bare(k): v for k, v in named.tensors.items()}


def _filled(given: _Given, component: _Named) -> Any:
    """A component of a listed class whose every tensor is in the file; it takes the memory of its tensors alone.

    Raises:
        Damaged: tensors are missing, or have other shapes than the architecture that their names tell.
    """
    model, named = _unfilled(component)
    due = model.state_dict()
    odd = [name for name, t in named.items() if name in due and due[name].shape != t.shape]
    if odd:
        shown = f"{odd[0]!r} is {tuple(named[odd[0]].shape)}, expected {tuple(due[odd[0]].shape)}"
        raise Damaged(f"{len(odd)} tensors of {given.source.path} have other shapes than {given.kind.name}'s: {shown}.")
    fitting = {name: t.to(given.source.dtype) for name, t in named.items() if name in due}
    model.load_state_dict(fitting, strict=False, assign=True)
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # type: ignore[operator]
    lost = [name for name, t in model.named_parameters() if t.is_meta]
    refuse_absent(lost, unprefixed(list(named)), given.source.path)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:  # a CLIP counts the places of a prompt, which no file holds
                module.register_buffer(name, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)
    return model.eval()


FAMILY = Family(_detect, _load, stored=stored)
