"""Checkpoints in one file draw what their folders draw, without network; what they lack is asked for in words."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import CodeType
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from checkpoint_fixtures import (
    BUILDERS,
    both,
    clip_names,
    flux_names,
    header_alone,
    open_clip_names,
    saved,
    sd3_names,
    shapes_of,
    t5_names,
    unet_names,
    vae_names,
)
from hosts_fixtures import largest
from palimpsest.cli import main
from palimpsest.core.delta import Dense
from palimpsest.core.errors import BadRequest, Damaged, PalimpsestError, Unsupported
from palimpsest.core.fingerprint import digest, tensors_of
from palimpsest.core.patch import Patch
from palimpsest.core.sampling import Sampling
from palimpsest.core.stored import Files, Tensors, digest_of
from palimpsest.hosts import shapes, vocabulary
from palimpsest.hosts.checkpoints import FLUX, SD1, SD2, SD3, SDXL, Reader, recognised
from palimpsest.hosts.headers import Header
from palimpsest.hosts.load import load, stored, write_edited
from palimpsest.hosts.single_file import _told_by_noise
from palimpsest.hosts.source import Source

REAL_INSTALLED = vocabulary.installed
FEW = Sampling(steps=2, size=16, guidance=3.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, an empty cache of the hub, and no package with a vocabulary."""

    def refuse(*args: object) -> None:
        raise AssertionError(f"tried to reach the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(vocabulary, "installed", lambda: None)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers splits Flux tensors at the width of the published model; here at the miniature's."""
    convert = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    code: CodeType = convert.__code__
    small = tuple(128 if constant == 3072 else constant for constant in code.co_consts)
    assert small != code.co_consts
    monkeypatch.setattr(convert, "__code__", code.replace(co_consts=small))


def wanted(family: str) -> dict[str, Any]:
    return {
        "sd1": {"prediction": "epsilon"},
        "sd2": {"prediction": "v_prediction"},
        "sdxl": {"prediction": "epsilon"},
    }.get(family, {})


@pytest.mark.parametrize("family", BUILDERS)
def test_a_file_draws_what_its_folder_draws(family: str, made: Path) -> None:
    folder, file = both(family, made)
    theirs, mine = load(folder), load(file, tokenizer=folder, **wanted(family))
    assert mine.fingerprint() == theirs.fingerprint()
    assert mine.settings() == theirs.settings()
    pictures = [host.sample(["a red star", "moon"], [3, 4], FEW) for host in (theirs, mine)]
    assert largest(*pictures) == 0.0
    assert float(pictures[0].std()) > 0.01


@pytest.mark.parametrize("family", BUILDERS)
def test_tensors_are_found_where_they_lie(family: str, made: Path) -> None:
    """Fused projections are split, halves change places, matrices are turned, and nothing is loaded."""
    folder, file = both(family, made)
    host = load(folder)
    theirs, mine = stored(folder), stored(file)
    assert digest_of(theirs) == digest_of(mine) == host.fingerprint()
    half = digest(tensors_of(host.root), dtype=torch.float16)
    assert digest_of(theirs, torch.float16) == digest_of(mine, torch.float16) == half
    assert isinstance(mine, Files)
    assert {len(place.pieces) for place in mine.places.values()} <= {1, 2}


@pytest.mark.parametrize("family", BUILDERS)
def test_a_checkpoint_is_written_with_a_patch_in_it(family: str, made: Path, tmp_path: Path) -> None:
    """What was split, moved and turned goes back to its place."""
    folder, file = both(family, made)
    host = load(folder)
    changes = {
        name: Dense(value=torch.randn(t.shape, generator=torch.Generator().manual_seed(i)))
        for i, (name, t) in enumerate(tensors_of(host.root).items())
        if t.is_floating_point() and t.ndim > 1
    }
    patch = Patch(base=host.fingerprint(), deltas=changes)
    write_edited(file, patch, tmp_path / "edited.safetensors")
    found = stored(tmp_path / "edited.safetensors")
    patch.fuse(host)
    for name, t in tensors_of(host.root).items():
        assert torch.equal(found.rows(name, 0, max(1, len(t) if t.ndim else 1)).reshape(t.shape), t), name
    assert Tensors(tmp_path / "edited.safetensors").metadata == Tensors(file).metadata


def test_a_part_that_a_file_lacks_is_named(made: Path, tmp_path: Path) -> None:
    tensors = {k: v for k, v in load_file(str(both("sd1", made)[1])).items() if not k.startswith("first_stage_model.")}
    save_file(tensors, str(tmp_path / "no-vae.safetensors"))
    with pytest.raises(Unsupported, match="without its vae"):
        stored(tmp_path / "no-vae.safetensors")


def test_the_command_line_takes_one(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = both("sd1", made)
    args = ["sample", "a star", "--model", str(file), "--steps", "1", "--out", str(tmp_path / "star.png")]
    assert main(args) == 2
    assert "--tokenizer FOLDER" in capsys.readouterr().err
    assert main([*args, "--tokenizer", str(folder), "--prediction", "epsilon"]) == 0
    assert (tmp_path / "star.png").is_file()


@pytest.mark.long
def test_an_audit_of_one_against_its_folder_sees_no_change(made: Path, tmp_path: Path) -> None:
    """The family's pictures have 512 pixels a side, however small its network."""
    folder, file = both("sd1", made)
    small = ["audit", "--before", str(file), "--after", str(folder), "--concept", "star", "--judge", "none"]
    few = ["--prompts", "1", "--seeds", "1", "--sample-steps", "1", "--out", str(tmp_path / "audit")]
    assert main([*small, *few, "--tokenizer", str(folder), "--prediction", "epsilon"]) == 0
    readings = json.loads((tmp_path / "audit" / "receipt.json").read_text())["readings"]
    assert all(r["value"] == 0 for r in readings if r["name"] in ("changed tensors", "pixel drift"))


# -- what the header alone tells ---------------------------------------------------------------------------------

UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    # As the folders of these models say it: the class of the network, and its configuration.
    "sd1": ("UNet2DConditionModel", {**UNET, "sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768}),
    "sd2": (
        "UNet2DConditionModel",
        {
            **UNET,
            "sample_size": 64,
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
    ),
    "sdxl": (
        "UNet2DConditionModel",
        {
            **UNET,
            "sample_size": 128,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "block_out_channels": [320, 640, 1280],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
    "sd3": (
        "SD3Transformer2DModel",
        {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
        },
    ),
    "sd3.5 medium": (
        "SD3Transformer2DModel",
        {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": list(range(13)),
            "qk_norm": "rms_norm",
        },
    ),
    "sd3.5 large": (
        "SD3Transformer2DModel",
        {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 38,
            "attention_head_dim": 64,
            "num_attention_heads": 38,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 2432,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
            "dual_attention_layers": [],
            "qk_norm": "rms_norm",
        },
    ),
    "flux dev": (
        "FluxTransformer2DModel",
        {
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "guidance_embeds": True,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "axes_dims_rope": [16, 56, 56],
        },
    ),
    "flux schnell": (
        "FluxTransformer2DModel",
        {
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "guidance_embeds": False,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "axes_dims_rope": [16, 56, 56],
        },
    ),
}
CLIP_L: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
VIT_H = {**CLIP_L, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23}
BIG_G = {**CLIP_L, "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
T5_XXL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def network(model: str) -> dict[str, Any]:
    """Its tensors under original names, without memory."""
    cls, config = PUBLISHED[model]
    state = shapes_of(getattr(diffusers, cls), config)
    if cls == "UNet2DConditionModel":
        return unet_names(state, layers=2)
    return sd3_names(state) if cls.startswith("SD3") else flux_names(state)


@pytest.mark.parametrize("model", PUBLISHED)
def test_models_of_true_size_are_known_from_the_header(model: str, tmp_path: Path) -> None:
    cls, config = PUBLISHED[model]
    file = header_alone({key: tuple(t.shape) for key, t in network(model).items()}, tmp_path / "m.safetensors")
    header = Header.of(file)
    kind = recognised(header)
    assert kind.network_cls == cls
    assert (
        kind.name
        == {"sd1": SD1, "sd2": SD2, "sdxl": SDXL, "sd3": SD3, "sd3.5": SD3, "flux": FLUX}[model.split()[0]].name
    )
    mine = kind.configure(header.under("model.diffusion_model."))
    told = {key: list(v) if isinstance(v, tuple) else v for key, v in mine.items()}
    assert {key: told[key] for key in config} == config
    built = shapes_of(getattr(diffusers, cls), mine)
    due = shapes_of(getattr(diffusers, cls), config)
    assert {key: t.shape for key, t in built.items()} == {key: t.shape for key, t in due.items()}


@pytest.mark.parametrize(
    ("reader", "cls", "config", "named"),
    [
        (SD1.readers["text_encoder"], "CLIPTextModel", CLIP_L, clip_names),
        (
            SD2.readers["text_encoder"],
            "CLIPTextModel",
            {**VIT_H, "hidden_act": "gelu"},
            partial(open_clip_names, more=1),
        ),
        (SDXL.readers["text_encoder"], "CLIPTextModel", CLIP_L, clip_names),
        (
            SDXL.readers["text_encoder_2"],
            "CLIPTextModelWithProjection",
            {**BIG_G, "hidden_act": "gelu", "projection_dim": 1280},
            open_clip_names,
        ),
        (SD3.readers["text_encoder_3"], "T5EncoderModel", T5_XXL, lambda state, prefix: t5_names(state)),
    ],
)
def test_text_encoders_of_true_size(
    reader: Reader, cls: str, config: dict[str, Any], named: Any, tmp_path: Path
) -> None:
    state = named(shapes_of(getattr(transformers, cls), config), reader.prefix)
    header = Header.of(header_alone({key: tuple(t.shape) for key, t in state.items()}, tmp_path / "m.safetensors"))
    mine = reader.config(header.under(reader.prefix))
    free = {"projection_dim"} if cls == "CLIPTextModel" else set()  # what such an encoder has none of
    assert {key: mine[key] for key in config if key not in free} == {k: v for k, v in config.items() if k not in free}


@pytest.mark.parametrize("more", [{}, {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}])
def test_autoencoders_of_true_size(more: dict[str, Any], tmp_path: Path) -> None:
    config = {**VAE, "use_quant_conv": True, "use_post_quant_conv": True, **more}
    state = vae_names(shapes_of(diffusers.AutoencoderKL, config), levels=4)
    header = Header.of(header_alone({key: tuple(t.shape) for key, t in state.items()}, tmp_path / "m.safetensors"))
    assert shapes.autoencoder(header.under("first_stage_model.")) == config


# -- what a file lacks -------------------------------------------------------------------------------------------


def test_every_way_to_a_tokenizer_is_said(made: Path) -> None:
    _, file = both("sd1", made)
    with pytest.raises(Unsupported) as e:
        load(file, prediction="epsilon")
    for way in (
        "--tokenizer FOLDER",
        "pip install open_clip_torch",
        "--download",
        "in the hub's cache: openai/clip-vit-",
    ):
        assert way in str(e.value)
    _, file = both("flux", made)
    with pytest.raises(Unsupported, match="brings no tokenizer, as no checkpoint"):
        load(file)


def test_a_folder_without_a_tokenizer_and_one_of_another_vocabulary(made: Path, tmp_path: Path) -> None:
    _, file = both("sd1", made)
    with pytest.raises(
        BadRequest, match=r"holds no CLIP tokenizer \(vocab.json and merges.txt, there or in tokenizer/\)"
    ):
        load(file, prediction="epsilon", tokenizer=tmp_path)
    with pytest.raises(BadRequest, match="There is no folder"):
        load(file, tokenizer=tmp_path / "nowhere")
    vocabulary.written(vocabulary.clip_words(merges(tmp_path), words=517), tmp_path)
    with pytest.raises(BadRequest, match=r"has 517 words and its text encoder 19\d: it is another model's"):
        load(file, prediction="epsilon", tokenizer=tmp_path)


def merges(folder: Path) -> Path:
    """A list of merges as CLIP's authors publish theirs, of three, and lines behind that nobody reads."""
    file = folder / "merges.gz"
    file.write_bytes(gzip.compress(b"a list of merges\ns t\nst a\nsta r</w>\nun used\n"))
    return file


def test_the_vocabulary_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = merges(tmp_path)
    words, pairs = vocabulary.clip_words(file, words=517)
    assert (words["!"], words["a"], words["!</w>"], words["st"], words["star</w>"]) == (0, 64, 256, 512, 514)
    assert (words[vocabulary.START], words[vocabulary.END], len(words)) == (515, 516, 517)
    assert pairs == ["s t", "st a", "sta r</w>"]
    monkeypatch.setattr(vocabulary, "installed", lambda: file)
    monkeypatch.setattr(vocabulary, "WORDS", 517)
    monkeypatch.setattr(vocabulary.clip_words, "__defaults__", (517,))
    source = Source(path=tmp_path, name="m", config={}, device=torch.device("cpu"), dtype=torch.float32)
    for padding in ("<|endoftext|>", "!"):
        held = vocabulary.tokenizer(source, "tokenizer", "clip", padding, rows=517)
        assert held("star")["input_ids"] == [515, 514, 516]
        assert held.pad_token == padding
        assert held.model_max_length == 77
    file.write_bytes(b"no zip")
    with pytest.raises(Damaged, match="cannot be read as CLIP's vocabulary"):
        vocabulary.tokenizer(source, "tokenizer", "clip", "!", rows=517)


@pytest.mark.skipif(find_spec("open_clip") is None, reason="open_clip_torch is not installed")
def test_the_true_vocabulary() -> None:
    zipped = vocabulary.PACKAGE and REAL_INSTALLED()
    assert zipped is not None
    words, pairs = vocabulary.clip_words(zipped)
    assert (len(words), len(pairs)) == (49408, 48894)
    assert (words["i"], words["in"], words["cat</w>"], words["<|endoftext|>"]) == (72, 512, 2368, 49407)


def test_a_tokenizer_in_the_hubs_cache(made: Path, tmp_path: Path) -> None:
    folder, file = both("sd1", made)
    repository = tmp_path / "cache" / "models--CompVis--stable-diffusion-v1-4"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    place = repository / "snapshots" / ("0" * 40) / "tokenizer"
    shutil.copytree(folder / "tokenizer", place)
    kept = json.loads((place / "tokenizer.json").read_text())["model"]
    if not (place / "vocab.json").exists():  # what older versions write, and the published repositories have
        (place / "vocab.json").write_text(json.dumps(kept["vocab"]))
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in kept["merges"]]
        (place / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]))
    assert load(file, prediction="epsilon").fingerprint() == load(folder).fingerprint()


def test_components_that_a_file_lacks_come_from_the_folder(made: Path, tmp_path: Path) -> None:
    folder, file = both("flux", made)
    bare = {
        key.removeprefix("model.diffusion_model."): t
        for key, t in load_file(file).items()
        if "double_blocks" in key or "model.diffusion" in key
    }
    alone = saved(bare, tmp_path / "network.safetensors")
    assert load(alone, tokenizer=folder).fingerprint() == load(folder).fingerprint()
    with pytest.raises(Unsupported, match=r"without its text_encoder\. Give the folder of a pipeline"):
        load(alone)
    without = {key: t for key, t in load_file(file).items() if not key.startswith("first_stage_model.")}
    with pytest.raises(Unsupported, match="without its vae"):
        load(saved(without, tmp_path / "m.safetensors"), tokenizer=words_alone(folder, tmp_path))


def words_alone(folder: Path, tmp_path: Path) -> Path:
    for part in folder.glob("tokenizer*"):
        shutil.copytree(part, tmp_path / "words" / part.name)
    return tmp_path / "words"


def test_sd3_without_t5(made: Path, tmp_path: Path) -> None:
    folder, file = both("sd3", made)
    without = {key: t for key, t in load_file(file).items() if "t5xxl" not in key}
    host = load(saved(without, tmp_path / "m.safetensors"), tokenizer=words_alone(folder, tmp_path))
    assert host.pipeline.text_encoder_3 is None
    assert host.sample(["a star"], [0], FEW).shape == (1, 3, 16, 16)


# -- what a network predicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mark", "metadata"), [("v_pred", None), ("", {"modelspec.prediction_type": "v"})])
def test_a_file_says_what_it_predicts(mark: str, metadata: dict[str, str] | None, made: Path, tmp_path: Path) -> None:
    folder, file = both("sdxl", made)
    more = {mark: torch.zeros(1), "ztsnr": torch.zeros(1)} if mark else {}
    marked = saved({**load_file(file), **more}, tmp_path / "m.safetensors", metadata)
    host = load(marked, tokenizer=folder)
    assert host.prediction == "v_prediction"
    assert bool(host.pipeline.scheduler.config.rescale_betas_zero_snr) == bool(mark)
    assert load(marked, tokenizer=folder, prediction="epsilon").prediction == "epsilon"


def test_a_network_tells_what_it_predicts() -> None:
    host = load("tiny/sd")
    source = Source(path=Path("m"), name="m", config={}, device=host.device, dtype=host.dtype)
    assert host.prediction == _told_by_noise(host, source) == "v_prediction"
    velocity = host.predict

    def noise(x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        alpha, sigma = host.noise(t)
        return alpha * velocity(x, t, cond) + sigma * x

    host.predict = noise
    assert _told_by_noise(host, source) == "epsilon"


def test_a_network_that_denoises_nothing_is_asked_about(made: Path) -> None:
    folder, file = both("sd1", made)
    with pytest.raises(BadRequest, match=r"predicts noise or velocity cannot be told.*--prediction epsilon"):
        load(file, tokenizer=folder)
    with pytest.raises(BadRequest, match="Unknown prediction 'sample'"):
        load(file, tokenizer=folder, prediction="sample")
    folder, file = both("sd3", made)
    with pytest.raises(BadRequest, match="predicts flow; leave out --prediction"):
        load(file, tokenizer=folder, prediction="epsilon")


def test_half_precision(made: Path, tmp_path: Path) -> None:
    folder, file = both("sd1", made)
    half = saved({key: t.half() for key, t in load_file(file).items()}, tmp_path / "m.safetensors")
    host = load(half, tokenizer=folder, prediction="epsilon")
    assert host.dtype == torch.float32
    assert (
        largest(host.denoiser.conv_in.weight, load_file(half)["model.diffusion_model.input_blocks.0.0.weight"].float())
        == 0
    )
    assert load(half, tokenizer=folder, prediction="epsilon", dtype="bfloat16").dtype == torch.bfloat16


# -- files that are refused --------------------------------------------------------------------------------------


def shaped(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    named = {key if "." in key else key.replace("__", "."): shape for key, shape in shapes.items()}
    return {key: torch.zeros(shape) for key, shape in named.items()}


NET = "model__diffusion_model__"
FIRST, LAST, TO_K = (
    f"{NET}input_blocks__0__0__weight",
    f"{NET}out__2__weight",
    f"{NET}input_blocks__1__1__attn2__to_k__weight",
)
QKV = "double_blocks__0__img_attn__qkv__weight"
OTHER: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "lora": ({"lora_unet_down__lora_up__weight": (2, 2)}, "is a LoRA, not a whole text-to-image model"),
    "vae": ({"encoder__down__0__block__0__conv1__weight": (2, 2)}, "is an autoencoder"),
    "clip": ({"text_model__encoder__layers__0__mlp__fc1__weight": (2, 2)}, "is a text encoder"),
    "t5": ({"encoder__block__0__layer__0__SelfAttention__q__weight": (2, 2)}, "is a T5 text encoder"),
    "unet": ({"down_blocks__0__resnets__0__conv1__weight": (2, 2)}, "is a single component of a diffusers folder"),
    "controlnet": ({"control_model__input_blocks__0__0__weight": (2, 4), FIRST: (2, 4)}, "is a ControlNet"),
    "playground": ({"edm_mean": (4,), FIRST: (2, 4), LAST: (4, 2)}, "is Playground 2.5"),
    "inpainting": ({FIRST: (2, 9), LAST: (4, 2)}, "reads 9 channels and gives 4: it is an inpainting"),
    "refiner": (
        {FIRST: (2, 4), LAST: (4, 2), "conditioner__embedders__0__model__ln_final__weight": (2,)},
        "is the refiner",
    ),
    "unknown": ({FIRST: (2, 4), LAST: (4, 2), TO_K: (2, 99)}, "text states 99 wide"),
    "fill": (
        {QKV: (2, 2), "img_in__weight": (2, 384), "final_layer__linear__weight": (64, 2)},
        "conditioned on pictures",
    ),
    "chroma": ({QKV: (2, 2), "distilled_guidance_layer__in_proj__bias": (2,)}, "is a Chroma network"),
    "nf4": ({"double_blocks.0.img_attn.qkv.weight.quant_state.bitsandbytes__nf4": (2,)}, "quantised by bitsandbytes"),
    "anything": ({"weight": (2, 2)}, "is no Stable Diffusion, SDXL, SD3 or Flux checkpoint"),
}


@pytest.mark.parametrize("what", OTHER)
def test_other_files_are_named(what: str, tmp_path: Path) -> None:
    tensors, words = OTHER[what]
    with pytest.raises(Unsupported, match=words):
        load(saved(shaped(**tensors), tmp_path / "m.safetensors"))


def test_fp8_and_gguf_are_refused_with_what_to_do(made: Path, tmp_path: Path) -> None:
    _, file = both("sd1", made)
    eight = {key: t.to(torch.float8_e4m3fn) for key, t in load_file(file).items()}
    with pytest.raises(Unsupported, match=r"is an fp8 checkpoint \(F8_E4M3\).*bfloat16"):
        load(saved(eight, tmp_path / "m.safetensors"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(Unsupported, match=r"is a GGUF file.*safetensors release"):
        load(tmp_path / "m.gguf")


@pytest.mark.parametrize("family", BUILDERS)
def test_tensors_that_are_missing_or_of_another_shape(family: str, made: Path, tmp_path: Path) -> None:
    folder, file = both(family, made)
    whole = load_file(file)
    names = sorted(whole)
    for name in (names[0], names[len(names) // 2], names[-1]):
        lacking = {key: t for key, t in whole.items() if key != name}
        with pytest.raises((Damaged, Unsupported)):
            load(saved(lacking, tmp_path / "m.safetensors"), tokenizer=folder, **wanted(family))
        other = {**whole, name: torch.zeros(*whole[name].shape, 2)}
        with pytest.raises(PalimpsestError):
            load(saved(other, tmp_path / "m.safetensors"), tokenizer=folder, **wanted(family))


def test_layers_beyond_all_bounds_are_not_built(made: Path, tmp_path: Path) -> None:
    folder, file = both("sd3", made)
    many = {"model.diffusion_model.joint_blocks.9999.x_block.attn.qkv.weight": torch.zeros(2, 2)}
    with pytest.raises(PalimpsestError, match="do not count from 0"):
        load(saved({**load_file(file), **many}, tmp_path / "m.safetensors"), tokenizer=folder)


def test_a_truncated_file_and_a_folder_around_a_file(made: Path, tmp_path: Path) -> None:
    folder, file = both("sd1", made)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Damaged, match="truncated or damaged"):
        load(cut, tokenizer=folder)
    (tmp_path / "around").mkdir()
    shutil.copy(file, tmp_path / "around")
    with pytest.raises(Unsupported, match=r"give the file itself: .*sd1\.safetensors"):
        load(tmp_path / "around")
