"""Adapters that peft and diffusers write change weights here exactly as they do there."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers.loaders import single_file_utils as converters
from safetensors.torch import save_file
from torch import Tensor, nn

from hosts_fixtures import fresh_host, host_of, largest, pipeline_of
from palimpsest.core.fingerprint import tensors_of
from palimpsest.core.patch import Patch
from palimpsest.export import names, read_patch
from palimpsest.hosts.originals import Place, fused

FAMILIES = ["sd", "sdxl", "sd3", "flux"]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def same_weights(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> int:
    """How many tensors changed; all are as wanted."""
    changed = 0
    for name, before in base.items():
        change = largest(wanted[name], before)
        changed += change > 1e-3
        assert largest(found[name], wanted[name]) <= 1e-5 * max(1.0, float(wanted[name].abs().max())), name
    return changed


# -- peft's own ------------------------------------------------------------------------------------------

LINEAR = ["to_k", "proj_in", "ff.net.2"]
CONFIGS: dict[str, Any] = {
    "plain": peft.LoraConfig(r=3, lora_alpha=5, target_modules=[*LINEAR, "conv1"]),
    "rslora": peft.LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=LINEAR),
    "dora": peft.LoraConfig(r=2, lora_alpha=4, use_dora=True, target_modules=[*LINEAR, "conv1"]),
    "patterns": peft.LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=LINEAR,
        rank_pattern={"attn1.to_k": 2},
        alpha_pattern={"attn2.to_k": 9, "^mid_block.attentions.0.proj_in": 1},
    ),
    "biased": peft.LoraConfig(r=2, lora_alpha=3, lora_bias=True, target_modules=["ff.net.2"]),
    "loha": peft.LoHaConfig(r=2, alpha=3, target_modules=[*LINEAR, "conv1"], use_effective_conv2d=True),
    "lokr": peft.LoKrConfig(r=2, alpha=3, target_modules=[*LINEAR, "conv1"], use_effective_conv2d=True),
    "lokr of whole factors": peft.LoKrConfig(r=64, alpha=16, target_modules=LINEAR, decompose_factor=4),
}


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # peft, of biases of its own making
@pytest.mark.parametrize("kind", CONFIGS)
def test_what_peft_writes_is_what_it_merges(kind: str, tmp_path: Path) -> None:
    host = host_of("sd")
    network: Any = host.root.unet
    model: Any = peft.get_peft_model(copy.deepcopy(network), copy.deepcopy(CONFIGS[kind]))
    g = generator()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "magnitude" in name:
                p.mul_(1 + torch.rand(p.shape, generator=g))
            elif p.requires_grad:
                p.copy_(0.3 * torch.randn(p.shape, generator=g))
    model.save_pretrained(tmp_path)
    merged = dict(model.merge_and_unload().named_parameters())
    base = {name: t.clone() for name, t in network.named_parameters()}
    patch = read_patch(tmp_path, host)
    with patch.applied(host):
        found = {name: t.clone() for name, t in network.named_parameters()}
    assert same_weights(found, merged, base) == len(patch.deltas) > 4


# -- diffusers -------------------------------------------------------------------------------------------


@cache
def base_of(family: str) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in tensors_of(host_of(family).root).items()}


def layers_of(family: str) -> list[str]:
    """Some layers of the network and of the text encoders that diffusers loads LoRAs into."""
    parts = ("unet.", "transformer.", "text_encoder.encoder.layers.1", "text_encoder.text_model.encoder.layers.1")
    every = [name for name, m in host_of(family).root.named_modules() if isinstance(m, nn.Linear)]
    return [name for name in every if name.startswith(parts) and (not name.startswith("unet.") or "attn" in name)]


def factors(name: str, family: str, rank: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    out, inner = base_of(family)[f"{name}.weight"].shape
    return torch.randn(rank, inner, generator=g), torch.randn(out, rank, generator=g) * (rank * inner) ** -0.5


def in_peft(family: str) -> dict[str, Tensor]:
    """Ranks from 1 to 3, without alpha."""
    held, g = {}, generator()
    for i, name in enumerate(layers_of(family)):
        down, up = factors(name, family, 1 + i % 3, g)
        held |= {f"{names.peft(name)}.lora_A.weight": down, f"{names.peft(name)}.lora_B.weight": up}
    return held


def in_kohya(family: str) -> dict[str, Tensor]:
    """Of one rank and alpha: where they differ, diffusers warns and leaves out alpha of some layers."""
    held, g = {}, generator()
    for name in layers_of(family):
        down, up = factors(name, family, 2, g)
        key = names.kohya(name, encoders=2 if family == "sdxl" else 1)
        held |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(0.5)}
    return held


def in_flux(family: str) -> dict[str, Tensor]:
    """Names of Flux's own code; q, k and v as one, half of them with factors of their own. diffusers knows the sizes of
    the published model's single blocks alone, whose first layer is left out."""
    held, g = {}, generator()
    rows = {name.removesuffix(".weight"): len(t) for name, t in base_of(family).items() if t.dim() > 1}
    for i, (key, places) in enumerate(sorted(fused(rows).items())):
        if key.endswith("linear1") or key.startswith(("final", "time", "img_in", "txt_in", "guidance", "vector")):
            continue
        base = [base_of(family)[f"{place.layer}.weight"] for place in places]
        rank = len(base) * (1 + i % 2)
        down = torch.randn(rank, base[0].shape[1], generator=g)
        up = torch.randn(sum(map(len, base)), rank, generator=g) * base[0].shape[1] ** -0.5
        if i % 3 == 0:
            up = torch.block_diag(*(part.chunk(len(base), 1)[n] for n, part in enumerate(up.chunk(len(base)))))
        flat = f"lora_unet_{key.replace('.', '_')}"
        held |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": torch.tensor(2.0)}
    return held


PARTS = ("unet", "transformer", "text_encoder")


def by_fusing(pipeline: Any, path: Path, scale: float) -> dict[str, Tensor]:
    """A pipeline's tensors while a LoRA that it loads is fused."""
    parts = [part for part in PARTS if hasattr(pipeline, part)]
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    pipeline.fuse_lora(lora_scale=scale, components=parts)
    found = {
        bare(f"{part}.{name.replace('.base_layer', '')}"): t.detach().clone()
        for part in parts
        for name, t in getattr(pipeline, part).named_parameters()
        if ".lora_" not in name
    }
    pipeline.unfuse_lora(components=parts)
    pipeline.unload_lora_weights()
    return found


def bare(name: str) -> str:
    return name.replace("text_model.", "")


FORMS = [*((family, in_peft) for family in FAMILIES), ("sd", in_kohya), ("sdxl", in_kohya), ("flux", in_flux)]


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_a_lora_changes_weights_as_in_diffusers(family: str, form: Any, tmp_path: Path) -> None:
    host, pipeline = host_of(family), pipeline_of(family)
    save_file({key: t.contiguous() for key, t in form(family).items()}, path := tmp_path / "lora.safetensors")
    patch = read_patch(path, host)
    for scale in (1.0, 0.5, -1.0, 0.0):
        wanted = by_fusing(pipeline, path, scale)
        base = {bare(name): t for name, t in base_of(family).items() if bare(name) in wanted}
        with patch.scaled(scale).applied(host):
            found = {bare(name): t.detach().clone() for name, t in tensors_of(host.root).items()}
        assert same_weights(found, wanted, base) == (0 if scale == 0 else len(patch.deltas))
    assert len(patch.deltas) > 10


def test_alpha_and_rslora_in_a_header_of_diffusers(tmp_path: Path) -> None:
    pipeline = pipeline_of("sd")
    config = peft.LoraConfig(r=3, lora_alpha=7, use_rslora=True, target_modules=["to_k", "to_q"])
    pipeline.unet.add_adapter(config)
    with torch.no_grad():
        for name, p in pipeline.unet.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=generator()))
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict

    type(pipeline).save_lora_weights(
        tmp_path, get_peft_model_state_dict(pipeline.unet), **_collate_lora_metadata({"unet": pipeline.unet})
    )
    host = host_of("sd")
    patch = read_patch(tmp_path, host)
    wanted = by_fusing(pipeline_of("sd"), tmp_path / "pytorch_lora_weights.safetensors", 1.0)
    with patch.applied(host):
        found = {bare(name): t.detach().clone() for name, t in tensors_of(host.root).items()}
    base = {name: t for name, t in base_of("sd").items() if name.startswith("unet.")}
    assert same_weights(found, wanted, base) == len(patch.deltas) > 10


# -- names of the published code ---------------------------------------------------------------------------


def numbered(places: Mapping[str, tuple[Place, ...]], rows: Mapping[str, int]) -> dict[str, Tensor]:
    """Original weights whose entries are numbers of their own rows, all different."""
    found, start = {}, 0
    for key, parts in places.items():
        n = sum(rows[place.layer] for place in parts)
        found[f"{key}.weight"] = torch.arange(start, start + n).float()[:, None]
        found[f"{key}.bias"] = found[f"{key}.weight"][:, 0].clone()
        start += n
    return found


def published(family: str) -> dict[str, int]:
    """Rows of each layer; Flux's in the width of the published model, which the converter expects."""
    rows = {
        name: len(m.weight) for name, m in host_of(family).root.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))
    }
    wide = 3072 // 16 if family == "flux" else 1
    return {name: wide * n for name, n in rows.items() if name.startswith("transformer.")}


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_rows_of_original_layers_lie_where_diffusers_converters_put_them(family: str) -> None:
    rows = published(family)
    places = fused(rows)
    theirs = numbered(places, rows)
    state = {key: t.clone() for key, t in theirs.items()}
    if family == "sd3":
        state["pos_embed"] = torch.zeros(1)
        named = converters.convert_sd3_transformer_checkpoint_to_diffusers(state)
    else:
        blocks = [f"double_blocks.{i}.{side}_attn.norm" for i in range(2) for side in ("img", "txt")]
        for block in (*blocks, "single_blocks.0.norm"):
            state |= {f"{block}.{n}_norm.scale": torch.zeros(1) for n in ("query", "key")}
        named = converters.convert_flux_transformer_checkpoint_to_diffusers(state)
    seen = set()
    for key, parts in places.items():
        for part in parts:
            rows_of = torch.cat([torch.arange(a, b) for a, b in part.rows]) if part.rows else slice(None)
            assert torch.equal(
                named[f"{part.layer.removeprefix('transformer.')}.weight"], theirs[f"{key}.weight"][rows_of]
            )
            seen.add(part.layer)
    assert seen == set(rows), "every layer has an original"


@pytest.mark.parametrize("family", ["sd3", "flux"])
@pytest.mark.parametrize("form", ["lora", "diff", "dora"])
def test_fused_layers_are_divided_by_rows(family: str, form: str, tmp_path: Path) -> None:
    host, g = host_of(family), generator()
    rows = {name.removesuffix(".weight"): len(t) for name, t in base_of(family).items() if t.dim() > 1}
    places = fused(rows)
    held: dict[str, Tensor] = {}
    wanted = dict(base_of(family))
    for key in (k for k in places if k.endswith(("qkv", "linear1", "adaLN_modulation.1", "x_embedder.proj"))):
        parts = places[key]
        order = [
            torch.cat([torch.arange(*span) for span in p.rows]) if p.rows else torch.arange(rows[p.layer])
            for p in parts
        ]
        weights = [base_of(family)[f"{p.layer}.weight"] for p in parts]
        whole = torch.empty(sum(map(len, weights)), *weights[0].shape[1:])
        for at, weight in zip(order, weights, strict=True):
            whole[at] = weight
        flat = f"lora_unet_{key.replace('.', '_')}"
        down, up = torch.randn(2, weights[0][0].numel(), generator=g), torch.randn(len(whole), 2, generator=g)
        new = whole + (up @ down).reshape(whole.shape)
        if form == "diff":
            held[f"{flat}.diff"] = new - whole
        else:
            held |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        if form == "dora":
            size = torch.rand(len(whole), *[1] * (whole.dim() - 1), generator=g)
            held[f"{flat}.dora_scale"] = size
            new = new * size / new.flatten(1).norm(dim=1).reshape(size.shape)
        held[f"{flat}.diff_b"] = torch.randn(len(whole), generator=g)
        for at, part in zip(order, parts, strict=True):
            wanted[f"{part.layer}.weight"] = new[at]
            wanted[f"{part.layer}.bias"] = base_of(family)[f"{part.layer}.bias"] + held[f"{flat}.diff_b"][at]
    save_file(held, path := tmp_path / "lora.safetensors")
    patch = read_patch(path, host)
    with patch.applied(host):
        found = {name: t.clone() for name, t in tensors_of(host.root).items()}
    assert same_weights(found, wanted, base_of(family)) == len(patch.deltas) > 20


def test_a_file_is_read_as_a_patch_and_the_model_stays(tmp_path: Path) -> None:
    host = fresh_host("flux")
    before = host.fingerprint()
    save_file(in_flux("flux"), path := tmp_path / "lora.safetensors")
    patch = read_patch(path, host)
    assert host.fingerprint() == before == patch.base
    again = Patch.load(patch.save(tmp_path / "patch.safetensors"))
    assert again.sha256() == patch.sha256()
    assert again.provenance["forms"] == {"LoRA": len(in_flux("flux")) // 3}
    assert again.provenance["ranks"] == [1, 6]
