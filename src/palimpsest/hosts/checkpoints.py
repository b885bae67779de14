"""What checkpoints in one file are: families told from names and shapes of tensors, and the facts that files lack.

Sizes are read from the tensors (`hosts.shapes`). What these do not tell (heads, activations, schedulers, scales of
latents, padding of prompts) is written down here by family, as the published folders of the models have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from palimpsest.core.errors import Unsupported
from palimpsest.hosts import shapes as sizes
from palimpsest.hosts.headers import Header, Shapes

NETWORK = "model.diffusion_model."
VP = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OFFSET = {**VP, "steps_offset": 1, "set_alpha_to_one": False}


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A text encoder of a family.

    Args:
        layout: how its tensors are named: "clip" (as in transformers), "open_clip" or "t5". cls: in transformers.
        prefix: of its tensors' names in the file. padding: what its tokenizer fills prompts up with.
        act: its activation. last: whether its last layer is read.
    """

    layout: str
    cls: str
    prefix: str
    padding: str = "<|endoftext|>"
    act: str = "quick_gelu"
    last: bool = True

    def config(self, shapes: Shapes) -> dict[str, Any]:
        return sizes.text_encoder(shapes, self.layout, self.act, self.last)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A family of pipelines as files of one piece hold it, and what these files do not say.

    Args:
        pipeline: its class in diffusers. network: the component that denoises.
        readers: text encoders by component; those of `optional` may be absent. latents: facts of the autoencoder.
        configure: the network's shapes -> its configuration. schedulers: what the network predicts -> the scheduler's
            class and configuration.
    """

    name: str
    pipeline: str
    network: str
    network_cls: str
    readers: Mapping[str, Reader]
    latents: Mapping[str, Any]
    configure: Callable[[Shapes], dict[str, Any]]
    schedulers: Mapping[str, tuple[str, Mapping[str, Any]]]
    optional: tuple[str, ...] = ()


CLIP_L = "text_encoders.clip_l.transformer."
T5 = Reader(layout="t5", cls="T5EncoderModel", prefix="text_encoders.t5xxl.transformer.")
_PNDM = ("PNDMScheduler", {**OFFSET, "skip_prk_steps": True, "prediction_type": "epsilon"})
_DDIM_V = ("DDIMScheduler", {**OFFSET, "clip_sample": False, "prediction_type": "v_prediction"})
_EULER = {**VP, "steps_offset": 1, "timestep_spacing": "leading", "interpolation_type": "linear"}

SD1 = Kind(
    name="Stable Diffusion 1",
    pipeline="StableDiffusionPipeline",
    network="unet",
    network_cls="UNet2DConditionModel",
    readers={"text_encoder": Reader(layout="clip", cls="CLIPTextModel", prefix="cond_stage_model.transformer.")},
    latents={"scaling_factor": 0.18215},
    configure=lambda shapes: sizes.unet(shapes, heads=8, size=64),
    schedulers={"epsilon": _PNDM, "v_prediction": _DDIM_V},
)
SD2 = Kind(
    name="Stable Diffusion 2",
    pipeline="StableDiffusionPipeline",
    network="unet",
    network_cls="UNet2DConditionModel",
    readers={
        "text_encoder": Reader(
            layout="open_clip",
            cls="CLIPTextModel",
            prefix="cond_stage_model.model.",
            padding="!",
            act="gelu",
            last=False,
        )
    },
    latents={"scaling_factor": 0.18215},
    # The larger of the two models of this family predicts velocity; in half precision its attention overflows.
    configure=lambda shapes: {**sizes.unet(shapes, size=64), "upcast_attention": True},
    schedulers={"epsilon": _PNDM, "v_prediction": _DDIM_V},
)
SDXL = Kind(
    name="Stable Diffusion XL",
    pipeline="StableDiffusionXLPipeline",
    network="unet",
    network_cls="UNet2DConditionModel",
    readers={
        "text_encoder": Reader(layout="clip", cls="CLIPTextModel", prefix="conditioner.embedders.0.transformer."),
        "text_encoder_2": Reader(
            layout="open_clip",
            cls="CLIPTextModelWithProjection",
            prefix="conditioner.embedders.1.model.",
            padding="!",
            act="gelu",
        ),
    },
    latents={"scaling_factor": 0.13025, "force_upcast": True},
    configure=lambda shapes: sizes.unet(shapes, size=128),
    schedulers={
        "epsilon": ("EulerDiscreteScheduler", {**_EULER, "prediction_type": "epsilon"}),
        "v_prediction": ("EulerDiscreteScheduler", {**_EULER, "prediction_type": "v_prediction"}),
    },
)
SD3 = Kind(
    name="Stable Diffusion 3",
    pipeline="StableDiffusion3Pipeline",
    network="transformer",
    network_cls="SD3Transformer2DModel",
    readers={
        "text_encoder": Reader(layout="clip", cls="CLIPTextModelWithProjection", prefix=CLIP_L),
        "text_encoder_2": Reader(
            layout="clip",
            cls="CLIPTextModelWithProjection",
            prefix="text_encoders.clip_g.transformer.",
            padding="!",
            act="gelu",
        ),
        "text_encoder_3": T5,
    },
    latents={"scaling_factor": 1.5305, "shift_factor": 0.0609, "force_upcast": True},
    configure=sizes.sd3,
    schedulers={"flow": ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 1000, "shift": 3.0})},
    optional=("text_encoder_3",),
)
FLUX = Kind(
    name="Flux.1",
    pipeline="FluxPipeline",
    network="transformer",
    network_cls="FluxTransformer2DModel",
    readers={
        "text_encoder": Reader(layout="clip", cls="CLIPTextModel", prefix=CLIP_L),
        "text_encoder_2": T5,
    },
    latents={"scaling_factor": 0.3611, "shift_factor": 0.1159, "force_upcast": True},
    configure=sizes.flux,
    schedulers={
        "flow": (
            "FlowMatchEulerDiscreteScheduler",
            {
                "num_train_timesteps": 1000,
                "shift": 3.0,
                "use_dynamic_shifting": True,
                "base_image_seq_len": 256,
                "max_image_seq_len": 4096,
                "base_shift": 0.5,
                "max_shift": 1.15,
            },
        ),
        "flow, undistilled": ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 1000, "shift": 1.0}),
    },
)
OTHERS = {  # part of a tensor's name that only these have -> what the file is
    "control_model.": "a ControlNet",
    "edm_mean": "Playground 2.5, which is trained in another way (EDM)",
    "time_stack.": "a video model",
    "lora_": "a LoRA",
    ".lora": "a LoRA",
    "hada_w1": "a LoHa",
    "emb_params": "a textual inversion",
    "joint_transformer_blocks.": "an AuraFlow network",
    "txt_in.individual_token_refiner.": "a HunyuanVideo network",
    "distilled_guidance_layer.": "a Chroma network",
    "single_stream_modulation.": "a Flux.2 network",
    "down_blocks.": "a single component of a diffusers folder",
    "transformer_blocks.": "a single component of a diffusers folder",
    "encoder.down.": "an autoencoder",
    "text_model.": "a text encoder",
    "encoder.block.": "a T5 text encoder",
}


def recognised(header: Header) -> Kind:
    """The family of a checkpoint.

    Raises:
        Unsupported: another model, a part of one, or numbers of 8 bits; the message says which.
    """
    path, network = header.path, header.under(NETWORK)
    eight = sorted({kind for kind in header.kinds.values() if kind.startswith("F8")})
    if eight:
        raise Unsupported(
            f"{path} is an fp8 checkpoint ({', '.join(eight)}): its numbers have lost too many bits for readings about "
            "the model that was trained. Take the fp16 or bf16 release. Where there is none, convert it once: load its "
            "tensors with safetensors.torch.load_file, multiply each weight by its scale where the file has scales, "
            "and save them as bfloat16."
        )
    if any("bitsandbytes__" in key for key in header.shapes):
        raise Unsupported(f"{path} is quantised by bitsandbytes, which is not read here; take the fp16 release.")
    other = next((what for sign, what in OTHERS.items() if any(sign in key for key in header.shapes)), "")
    plain = network or header.under("")
    if "joint_blocks.0.x_block.attn.qkv.weight" in plain:
        return SD3
    if "double_blocks.0.img_attn.qkv.weight" in plain and not _is(other, "Chroma", "Flux.2", "Hunyuan"):
        latents = plain.get("img_in.weight", (0, 0))[1]
        out = plain.get("final_layer.linear.weight", (latents,))[0]
        if latents != out:
            raise Unsupported(
                f"{path} is a Flux model conditioned on pictures (it reads {latents} channels and gives {out}), "
                "such as Fill, Depth or Canny. Use its text-to-image sister."
            )
        return FLUX
    if "input_blocks.0.0.weight" not in network or _is(other, "ControlNet", "Playground", "video"):
        told = other or "no Stable Diffusion, SDXL, SD3 or Flux checkpoint (none of their tensors)"
        raise Unsupported(
            f"{path} is {told}, not a whole text-to-image model that can be loaded. A LoRA or a part of a model is not "
            "a model: give the folder or file of the whole model."
        )
    return _latent_diffusion(header, network)


def _latent_diffusion(header: Header, network: Shapes) -> Kind:
    """Stable Diffusion 1, 2 or XL, told by the text encoder, else by the width of text states."""
    channels, out = network["input_blocks.0.0.weight"][1], network.get("out.2.weight", (0,))[0]
    if channels != out:
        raise Unsupported(
            f"{header.path} reads {channels} channels and gives {out}: it is an inpainting, upscaling or otherwise "
            "image-conditioned model. Use its text-to-image sister."
        )
    for kind in (SDXL, SD2, SD1):
        if header.prefix(list(kind.readers.values())[-1].prefix) is not None:
            return kind
    to_k = next((shape for key, shape in network.items() if key.endswith("attn2.to_k.weight")), (0, 0))
    widths = {768: SD1, 1024: SD2, 2048: SDXL}
    if header.prefix("conditioner.embedders.0.model.") is not None or to_k[1] == 1280:
        raise Unsupported(f"{header.path} is the refiner of SDXL, which goes on from pictures. Use the base model.")
    if to_k[1] not in widths:
        raise Unsupported(f"{header.path} has no text encoder, and reads text states {to_k[1]} wide: no listed family.")
    return widths[to_k[1]]


def _is(what: str, *words: str) -> bool:
    return any(word in what for word in words)
