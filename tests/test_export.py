"""Exported LoRAs: diffusers reads them and draws what the patch draws; what no LoRA can hold is named."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from hosts_fixtures import by_diffusers, fresh_host, host_of, largest, pipeline_of
from palimpsest import cli
from palimpsest.core.delta import Delta, Dense, LowRank, Rows, Sparse
from palimpsest.core.errors import BadRequest, Unsupported, WrongBase
from palimpsest.core.fingerprint import tensors_of
from palimpsest.core.patch import Hook, Patch, compose
from palimpsest.core.sampling import Sampling
from palimpsest.export import export_patch, names, read_patch
from palimpsest.export.factors import RESIDUAL, balanced, factors, padded
from palimpsest.export.lora import architecture

SAME = 1e-3  # of the range of pixels


def weights(host: Any, *parts: str) -> dict[str, Tensor]:
    """Every weight of a linear or convolution layer under these parts."""
    return {
        f"{name}.weight": m.weight
        for name, m in host.root.named_modules()
        if name.startswith(parts) and isinstance(m, (nn.Linear, nn.Conv2d))
    }


def low_rank(shape: torch.Size, rank: int, generator: torch.Generator, size: float = 0.5) -> LowRank:
    """Large enough to change pictures: about `size` of a random weight."""
    inner = shape[1:].numel()
    up = torch.randn(shape[0], rank, generator=generator) * size * (rank * inner) ** -0.5
    return LowRank(up=up, down=torch.randn(rank, inner, generator=generator))


def everywhere(host: Any, *parts: str) -> Patch:
    """A patch of every layer of these parts, in all forms by turns."""
    generator = torch.Generator().manual_seed(5)
    deltas: dict[str, Delta] = {}
    for i, (name, weight) in enumerate(weights(host, *parts).items()):
        delta = low_rank(weight.shape, 1 + i % 3, generator, 0.2)
        if i % 4 == 1:
            deltas[name] = Dense(value=delta.dense(weight.shape))
        elif i % 4 == 2:
            deltas[name] = Rows(index=torch.tensor([1, 0]), value=delta.dense(weight.shape)[:2])
        elif i % 4 == 3:
            deltas[name] = Sparse(index=torch.tensor([0, 3]), value=torch.tensor([0.1, -0.2]))
        else:
            deltas[name] = delta
    return Patch(base=host.fingerprint(), deltas=deltas, provenance={"method": "erase/uce"})


def read_back(path: Path, host: Any) -> dict[str, Tensor]:
    """Weight name -> change, from the file alone: alpha / rank times up times down, by either format's names."""
    held, found = load_file(path), {}
    for name, weight in weights(host, "unet", "text_encoder").items():
        layer = name.removesuffix(".weight")
        for key, down, up in (
            (names.peft(layer), "lora_A", "lora_B"),
            (names.kohya(layer, encoders=len(host.parts("text_encoder"))), "lora_down", "lora_up"),
        ):
            if f"{key}.{down}.weight" in held:
                a, b = held.pop(f"{key}.{down}.weight").float(), held.pop(f"{key}.{up}.weight").float()
                scale = float(held.pop(f"{key}.alpha", torch.tensor(float(len(a))))) / len(a)
                found[name] = scale * (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
    assert not held, "every key of the file is a layer's"
    return found


@pytest.mark.parametrize("format", ["peft", "kohya"])
@pytest.mark.parametrize("family", ["sd", "sd_v", "sdxl"])
def test_diffusers_draws_the_same_pictures(family: str, format: Any, tmp_path: Path) -> None:
    host = fresh_host(family)
    patch = everywhere(host, "unet", "text_encoder")
    before = by_diffusers(host.pipeline)
    done = export_patch(patch, host, format, tmp_path / "lora")
    with patch.applied(host):
        patched = by_diffusers(host.pipeline)
    pipeline = pipeline_of(family)
    pipeline.load_lora_weights(done.path.parent, weight_name=done.path.name)
    loaded = by_diffusers(pipeline)
    assert largest(before, patched) > 20 * SAME, "a test of equality needs a difference"
    assert largest(patched, loaded) <= SAME
    assert done.layers == len(patch.deltas)
    pipeline.unload_lora_weights()
    assert largest(before, by_diffusers(pipeline)) <= SAME


@pytest.mark.parametrize("format", ["peft", "kohya"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_what_is_read_back_is_the_patch(family: str, format: Any, tmp_path: Path) -> None:
    host = host_of(family)
    patch = everywhere(host, "unet", "text_encoder")
    found = read_back(export_patch(patch, host, format, tmp_path).path, host)
    assert set(found) == set(patch.deltas)
    for name, delta in patch.deltas.items():
        dense = delta.dense(found[name].shape)
        assert largest(found[name], dense) <= 1e-5 * float(dense.abs().max()), name


def test_all_layers_have_one_rank_and_alpha(tmp_path: Path) -> None:
    host = host_of("sd")
    patch = everywhere(host, "unet", "text_encoder")
    done = export_patch(patch, host, "kohya", tmp_path / "gone")
    assert done.path.name == "gone.safetensors"
    assert done.own_rank == (3, 1)
    with safe_open(done.path, framework="pt") as f:
        keys, header = list(f.keys()), f.metadata()
        assert {float(f.get_tensor(k)) for k in keys if k.endswith(".alpha")} == {3.0}
        assert {f.get_tensor(k).shape[0] for k in keys if k.endswith("down.weight")} == {3}
    assert header["ss_network_dim"] == header["ss_network_alpha"] == "3"
    assert "modelspec.architecture" not in header, "a model of no published size"
    assert json.loads(header["palimpsest_export"])["base"] == patch.base
    assert any(k.startswith("lora_te_text_model_encoder_layers_0_") for k in keys)
    of_xl = export_patch(everywhere(host_of("sdxl"), "text_encoder"), host_of("sdxl"), "kohya", tmp_path / "xl")
    assert {k.split("_")[1] for k in load_file(of_xl.path)} == {"te1", "te2"}


@pytest.mark.parametrize(
    ("width", "prediction", "family"),
    [
        (768, "epsilon", "stable-diffusion-v1"),
        (1024, "v_prediction", "stable-diffusion-v2-768-v"),
        (1024, "epsilon", "stable-diffusion-v2-512"),
        (2048, "epsilon", "stable-diffusion-xl-v1-base"),
        (16, "epsilon", ""),
    ],
)
def test_headers_name_the_published_family(width: int, prediction: str, family: str) -> None:
    key = nn.Linear(width, 4, bias=False)
    host = SimpleNamespace(prediction=prediction, parts=lambda role: {"unet.to_k": key})
    assert architecture(host) == family
    assert architecture(None) == ""


def test_closed_form_edits_and_their_sums_keep_their_rank(tmp_path: Path) -> None:
    from palimpsest.core.concept import Concept, Request
    from palimpsest.erase.uce import UCE

    host = fresh_host("sd")
    edits = [UCE(tokens="last")(host, Request(target=(Concept(name=n),))) for n in ("star", "moon")]
    both = compose(*edits, overlap="sum")
    done = export_patch(both, None, "peft", tmp_path)
    assert done.rank == 2, "one for each edited token"
    with both.applied(host):
        patched = by_diffusers(host.pipeline)
    pipeline = pipeline_of("sd")
    pipeline.load_lora_weights(tmp_path)
    assert largest(patched, by_diffusers(pipeline)) <= SAME


def test_the_shipped_model_forgets_by_lora_alone(tmp_path: Path) -> None:
    import diffusers

    from palimpsest.erase.uce import UCE
    from palimpsest.run import load, request
    from palimpsest.tiny import path

    host: Any = load("tiny/sd")
    patch = UCE()(host, request(host, "star"))
    export_patch(patch, host, "kohya", tmp_path)
    pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(path("sd"), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "pt"}

    def drawn() -> Tensor:
        return pipeline("a red star", generator=torch.Generator().manual_seed(4), **settings).images

    before = drawn()
    pipeline.load_lora_weights(tmp_path)
    with patch.applied(host):
        edited = host.sample(["a red star"], [4], Sampling(steps=3, guidance=2.0))
    assert largest(before, edited) > 20 * SAME
    assert largest(drawn(), edited) <= SAME


def test_a_thousand_concepts_in_one_patch(tmp_path: Path) -> None:
    from palimpsest.core.concept import Concept, Request
    from palimpsest.erase.uce import UCE

    host = fresh_host("sd")
    names_ = [f"thing {i}" for i in range(1000)]
    request = Request(target=tuple(Concept(name=n) for n in names_), toward=(Concept(name="x"),))
    made = UCE(tokens="last", ridge=0.5)(host, request)
    patch = Patch.load(made.save(tmp_path / "patch.safetensors"))
    assert patch.sha256() == made.sha256()
    cond = host.tokens([*names_, "x"])
    last = cond.states[torch.arange(1001), cond.lengths - 2].double()
    e, v = last[:1000], last[1000:].expand(1000, -1)
    gram = e.T @ e + 0.5 * torch.eye(e.shape[1], dtype=torch.float64)
    weights_: dict[str, Any] = {
        n: m.weight for role in ("cross_key", "cross_value") for n, m in host.parts(role).items()
    }
    old = {n: w.detach().double().clone() for n, w in weights_.items()}
    with patch.applied(host):
        for name, w in weights_.items():
            wanted = torch.linalg.solve(gram, (old[name] @ (v.T @ e + 0.5 * torch.eye(e.shape[1]))).T).T
            assert largest(w.double(), wanted) < 1e-4, name
            assert largest(w.double(), old[name]) > 1e-2
    found = read_back(export_patch(patch, host, "kohya", tmp_path / "lora").path, host)
    assert largest(found[f"{name}.weight"], patch.deltas[f"{name}.weight"].dense(old[name].shape)) < 1e-5


def test_a_scaled_lora_is_a_scaled_patch(tmp_path: Path) -> None:
    host = fresh_host("sd")
    patch = everywhere(host, "unet")
    done = export_patch(patch, host, "peft", tmp_path)
    pipeline = pipeline_of("sd")
    pipeline.load_lora_weights(done.path.parent, adapter_name="gone")
    for scale in (0.0, 0.5, -1.0):
        pipeline.set_adapters("gone", scale)
        with patch.scaled(scale).applied(host):
            assert largest(by_diffusers(host.pipeline), by_diffusers(pipeline)) <= SAME


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_diffusers_draws_what_a_transformers_peft_file_says(family: str, tmp_path: Path) -> None:
    host = fresh_host(family)
    generator = torch.Generator().manual_seed(1)
    layers = {n: w for n, w in weights(host, "transformer").items() if ".attn." in n}
    deltas = {n: low_rank(w.shape, 2, generator) for n, w in layers.items()}
    patch = Patch(base=host.fingerprint(), deltas=deltas)
    export_patch(patch, host, "peft", tmp_path)
    with patch.applied(host):
        patched = by_diffusers(host.pipeline)
    pipeline = pipeline_of(family)
    pipeline.load_lora_weights(tmp_path)
    assert largest(patched, by_diffusers(pipeline)) <= SAME


def test_diffusers_draws_what_a_file_in_fluxs_own_names_says(tmp_path: Path) -> None:
    host = fresh_host("flux")
    generator = torch.Generator().manual_seed(1)
    # Of a single block diffusers knows the first layer in the published model's size alone; layers outside of blocks
    # it renames to names that it does not look for.
    layers = weights(host, "transformer.transformer_blocks")
    deltas: dict[str, Delta] = {n: low_rank(w.shape, 1 + i % 2, generator) for i, (n, w) in enumerate(layers.items())}
    patch = Patch(base=host.fingerprint(), deltas=deltas)
    done = export_patch(patch, host, "kohya", tmp_path / "lora")
    keys = {key.partition(".")[0] for key in load_file(done.path)}
    assert "lora_unet_double_blocks_1_img_attn_qkv" in keys
    assert done.layers == len(deltas) > len(keys)
    with patch.applied(host):
        patched = by_diffusers(host.pipeline)
    pipeline = pipeline_of("flux")
    pipeline.load_lora_weights(done.path.parent, weight_name=done.path.name)
    assert largest(patched, by_diffusers(pipeline)) <= SAME
    with pytest.raises(BadRequest, match="--model"):
        export_patch(patch, None, "kohya", tmp_path / "unknown")


@pytest.mark.parametrize("format", ["peft", "kohya"])
@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_what_is_exported_and_read_is_the_patch_in_every_family(family: str, format: Any, tmp_path: Path) -> None:
    host = host_of(family)
    every = everywhere(host, "unet", "transformer", "text_encoder")
    # peft's readers know no T5; its layers go out in kohya's format alone.
    deltas = {n: d for n, d in every.deltas.items() if format == "kohya" or not names.is_t5(n)}
    found = read_patch(export_patch(Patch(base=every.base, deltas=deltas), host, format, tmp_path).path, host)
    assert set(found.deltas) == set(deltas)
    for name, delta in deltas.items():
        shape = host.root.get_parameter(name).shape
        dense = delta.dense(shape)
        assert largest(found.deltas[name].dense(shape), dense) <= 1e-5 * float(dense.abs().max()), name


def test_a_lora_with_factors_in_common_keeps_its_rank(tmp_path: Path) -> None:
    host = host_of("flux")
    down, parts = torch.randn(2, 16, generator=torch.Generator().manual_seed(2)), "qkv"
    layer = "transformer.transformer_blocks.0.attn.to_{}.weight"
    deltas = {layer.format(x): LowRank(up=torch.full((16, 2), 0.1 * i), down=down) for i, x in enumerate(parts, 1)}
    assert export_patch(Patch(base=host.fingerprint(), deltas=deltas), host, "kohya", tmp_path).rank == 2


@pytest.mark.parametrize("form", ["dense", "low_rank", "rows"])
def test_a_rank_keeps_the_largest_singular_values_and_says_what_is_lost(form: str, tmp_path: Path) -> None:
    host, g = host_of("sd"), torch.Generator().manual_seed(3)
    name = "unet.up_blocks.0.resnets.0.conv1.weight"
    shape = host.root.get_parameter(name).shape
    change = torch.randn(shape, generator=g)
    delta: Delta = Dense(value=change)
    if form == "low_rank":
        delta = low_rank(shape, 7, g)
    elif form == "rows":
        delta = Rows(index=torch.arange(6), value=change[:6])
    small = low_rank(torch.Size((16, 16)), 1, g)
    other = "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    patch = Patch(base=host.fingerprint(), deltas={name: delta, other: small})
    done = export_patch(patch, host, "kohya", tmp_path, rank=3)
    u, s, v = torch.linalg.svd(delta.dense(shape).flatten(1).double(), full_matrices=False)
    found = read_patch(done.path, host).deltas
    best = (u[:, :3] * s[:3] @ v[:3]).reshape(shape)
    assert largest(found[name].dense(shape).double(), best) <= 1e-5 * float(best.abs().max())
    assert largest(found[other].dense(torch.Size((16, 16))), small.dense(torch.Size((16, 16)))) < 1e-5
    share = float(s[3:].norm() / s.norm())
    assert list(done.lost.values()) == pytest.approx([share], rel=1e-4)
    in_all = float(s[3:].norm() / (s.norm() ** 2 + small.dense(torch.Size((16, 16))).norm() ** 2).sqrt())
    assert done.lost_in_all == pytest.approx(in_all, rel=1e-4)
    with safe_open(done.path, framework="pt") as f:
        told = json.loads(f.metadata()["palimpsest_residual"])
    assert told == {"in_all": done.lost_in_all, "layers": dict(done.lost)}
    assert export_patch(patch, host, "peft", tmp_path / "p", rank=16).lost == {}
    with pytest.raises(BadRequest, match="at least 1"):
        export_patch(patch, host, "peft", tmp_path / "p", rank=0)


def test_t5_goes_out_in_kohyas_format_alone(tmp_path: Path) -> None:
    host = host_of("flux")
    name = "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.weight"
    patch = Patch(base=host.fingerprint(), deltas={name: LowRank(up=torch.ones(16, 1), down=torch.ones(1, 32))})
    with pytest.raises(Unsupported, match="T5"):
        export_patch(patch, host, "peft", tmp_path)
    held = load_file(export_patch(patch, host, "kohya", tmp_path).path)
    assert "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight" in held


def test_half_is_half_the_size(tmp_path: Path) -> None:
    host = host_of("sd")
    patch = everywhere(host, "unet")
    whole, half = (export_patch(patch, host, "peft", tmp_path / str(h), half=h) for h in (False, True))
    assert half.nbytes * 2 == whole.nbytes
    assert {t.dtype for t in load_file(half.path).values()} == {torch.float16}
    large = Patch(base=patch.base, deltas={n: d.scaled(1e12) for n, d in patch.deltas.items()})
    with pytest.raises(Unsupported, match="float32"):
        export_patch(large, host, "peft", tmp_path / "large", half=True)
    assert not (tmp_path / "large").exists()


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("unet.conv_in.bias", "bias"),
        ("unet.conv_norm_out.weight", "normalisation"),
        ("text_encoder.encoder.layers.0.layer_norm1.weight", "normalisation"),
        ("text_encoder.embeddings.token_embedding.weight", "embedding table"),
        ("vae.decoder.conv_in.weight", "vae"),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_what_no_lora_can_hold_is_named(name: str, word: str, known: bool, tmp_path: Path) -> None:
    host = host_of("sd")
    value = torch.zeros_like(tensors_of(host.root)[name])
    patch = Patch(base=host.fingerprint(), deltas={name: Dense(value=value)})
    with pytest.raises(Unsupported, match=word) as e:
        export_patch(patch, host if known else None, "peft", tmp_path)
    assert name in str(e.value)
    assert not list(tmp_path.iterdir())


def test_other_refusals(tmp_path: Path) -> None:
    host = host_of("sd")
    base = host.fingerprint()
    with pytest.raises(Unsupported, match="erase/sld"):
        export_patch(Patch(base=base, hooks=(Hook(id="erase/sld"),)), host, "peft", tmp_path)
    with pytest.raises(BadRequest, match="changes nothing"):
        export_patch(Patch(base=base), host, "peft", tmp_path)
    with pytest.raises(WrongBase, match="made for the model"):
        export_patch(Patch(base="0" * 64, deltas=everywhere(host, "unet").deltas), host, "peft", tmp_path)
    with pytest.raises(BadRequest, match="--model"):
        export_patch(everywhere(host, "text_encoder"), None, "kohya", tmp_path)
    few = Patch(base=base, deltas={"unet.conv_in.weight": LowRank(up=torch.zeros(8, 1), down=torch.zeros(1, 36))})
    with pytest.raises(BadRequest, match=r"conv_in.*--model"):
        export_patch(few, None, "peft", tmp_path)
    with pytest.raises(BadRequest, match="format"):
        export_patch(everywhere(host, "unet"), host, "pickle", tmp_path)  # type: ignore[arg-type]


def test_factors_are_small_and_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = torch.Size((20, 6, 3, 3))
    thin = low_rank(shape, 4, generator).dense(shape)
    up, down = factors(Dense(value=thin), shape)
    assert up.shape == (20, 4)
    assert float((up @ down - thin.flatten(1)).norm()) <= 2 * RESIDUAL * float(thin.norm())
    full = torch.randn(5, 9, generator=generator)
    for change in (full, full.T):
        up, down = factors(Dense(value=change), change.shape)
        assert up.shape[1] == 5
        assert torch.equal(up @ down, change)
    assert factors(Dense(value=torch.zeros(3, 4)), torch.Size((3, 4)))[0].shape == (3, 0)
    over = LowRank(up=torch.randn(3, 7, generator=generator), down=torch.randn(7, 4, generator=generator))
    up, down = factors(over, torch.Size((3, 4)))
    assert up.shape[1] == 3
    assert torch.allclose(up @ down, over.up @ over.down, atol=1e-5)
    twice = Rows(index=torch.tensor([2, 2]), value=torch.ones(2, 4))
    up, down = factors(twice, torch.Size((3, 4)))
    assert torch.equal(up @ down, twice.dense(torch.Size((3, 4))))
    even = balanced(1000 * up, down)
    assert torch.equal(even[0] @ even[1], 1000 * (up @ down))
    assert 0.5 <= float(even[0].max()) / float(even[1].max()) <= 2
    assert balanced(up * 0, down)[0].eq(0).all()
    wide = padded(up, down, 5)
    assert wide[0].shape[1] == 5
    assert torch.equal(wide[0] @ wide[1], up @ down)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = host_of("sd")
    path = everywhere(host, "unet").save(tmp_path / "patch.safetensors")
    told = ["export", "--patch", str(path), "--format", "kohya", "--out", str(tmp_path / "out")]
    assert cli.main(told) == 2
    assert "--model" in capsys.readouterr().err
    assert cli.main([*told, "--model", str(host.folder)]) == 0
    assert "rank 3" in (said := capsys.readouterr().out)
    assert "leaves out" not in said
    assert cli.main([*told, "--model", str(host.folder), "--rank", "1", "--overwrite"]) == 0
    assert "Rank 1 leaves out" in capsys.readouterr().out
    assert (tmp_path / "out" / "out.safetensors").is_file()
