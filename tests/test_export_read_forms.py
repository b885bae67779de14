"""Each form that other programs write means the product that its paper says, written naively here; what is odd is
refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hosts_fixtures import host_of, largest
from palimpsest.core.delta import LowRank
from palimpsest.core.errors import BadRequest, Damaged, Unsupported, WrongBase
from palimpsest.export import read_patch

LINEAR = "unet.up_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"  # 128 x 16
CONV = "unet.up_blocks.0.resnets.0.conv1"  # 16 x 32 x 3 x 3
NORM = "unet.up_blocks.0.resnets.0.norm1"


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def kohya(layer: str, **tensors: Tensor) -> dict[str, Tensor]:
    base = f"lora_{layer.replace('.', '_')}"
    return {f"{base}.{end.replace('__', '.')}": t.clone().contiguous() for end, t in tensors.items()}


def read(tensors: dict[str, Tensor], folder: Path, family: str = "sd", **more: Any) -> Any:
    meta = more.pop("meta", None)
    save_file(tensors, path := folder / "l.safetensors", metadata=meta)
    return read_patch(path, host_of(family), **more)


def same(tensors: dict[str, Tensor], layer: str, wanted: Tensor, folder: Path, kind: str = "weight") -> Any:
    patch = read(tensors, folder)
    assert set(patch.deltas) == {f"{layer}.{kind}"}
    delta = patch.deltas[f"{layer}.{kind}"]
    assert largest(delta.dense(wanted.shape), wanted) <= 2e-6 * float(wanted.abs().max())
    return delta


def convolved(up: Tensor, mid: Tensor, down: Tensor) -> Tensor:
    """The weight of three convolutions, one after the other: what they do to unit pictures."""
    found = torch.zeros(up.shape[0], down.shape[1], *mid.shape[2:])
    for o in range(up.shape[0]):
        for a in range(up.shape[1]):
            for b in range(down.shape[0]):
                found[o] += up[o, a] * mid[a, b][None] * down[b][:, None, None]
    return found


def test_loras_of_convolutions_and_with_a_core(tmp_path: Path) -> None:
    down, up = drawn(4, 32, 3, 3), drawn(16, 4, 1, 1)
    wanted = 0.5 * torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    held = kohya(CONV, lora_down__weight=down, lora_up__weight=up, alpha=torch.tensor(2.0))
    delta = same(held, CONV, wanted, tmp_path)
    assert delta.rank() == 4
    a, mid, b = drawn(4, 32, 1, 1), drawn(4, 4, 3, 3), drawn(16, 4, 1, 1)
    held = kohya(CONV, lora_down__weight=a, lora_mid__weight=mid, lora_up__weight=b, alpha=torch.tensor(1.0))
    wanted = 0.25 * convolved(b[:, :, 0, 0], mid, a[:, :, 0, 0])
    assert same(held, CONV, wanted, tmp_path).rank() == 4
    # A rank beyond what the layer allows costs no more than the layer.
    down, up = drawn(300, 16), drawn(128, 300)
    assert same(kohya(LINEAR, lora_down__weight=down, lora_up__weight=up), LINEAR, up @ down, tmp_path).kind == "dense"


@pytest.mark.parametrize("rank", [2, 9])
def test_loha(rank: int, tmp_path: Path) -> None:
    w = {
        n: drawn(*((128, rank) if n.endswith("a") else (rank, 16))) * i
        for i, n in enumerate(("1a", "1b", "2a", "2b"), 1)
    }
    wanted = 3.0 / rank * (w["1a"] @ w["1b"]) * (w["2a"] @ w["2b"])
    held = kohya(LINEAR, **{f"hada_w{n[0]}_{n[1]}": t for n, t in w.items()}, alpha=torch.tensor(3.0))
    delta = same(held, LINEAR, wanted, tmp_path)
    assert isinstance(delta, LowRank) == (rank == 2), "low-rank where that is smaller"


def test_loha_of_a_convolution_with_cores(tmp_path: Path) -> None:
    w1, w2 = ((drawn(3, 16) * n, drawn(3, 32), drawn(3, 3, 3, 3) + n) for n in (1, 2))
    wanted = torch.ones(16, 32, 3, 3)
    for a, b, core in (w1, w2):
        wanted *= convolved(a.T, core, b)
    held = {}
    for n, (a, b, core) in (("1", w1), ("2", w2)):
        held |= kohya(CONV, **{f"hada_w{n}_a": a, f"hada_w{n}_b": b, f"hada_t{n}": core})
    same({**held, **kohya(CONV, alpha=torch.tensor(3.0))}, CONV, wanted, tmp_path)
    plain = kohya(
        CONV, hada_w1_a=drawn(16, 2), hada_w1_b=drawn(2, 288), hada_w2_a=drawn(16, 3), hada_w2_b=drawn(3, 288)
    )
    wanted = (drawn(16, 2) @ drawn(2, 288)) * (drawn(16, 3) @ drawn(3, 288))
    same(plain, CONV, wanted.reshape(16, 32, 3, 3), tmp_path)


def kron(a: Tensor, b: Tensor) -> Tensor:
    """Entry by entry, of a matrix and a weight."""
    found = torch.zeros(a.shape[0] * b.shape[0], a.shape[1] * b.shape[1], *b.shape[2:])
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            found[i * b.shape[0] : (i + 1) * b.shape[0], j * b.shape[1] : (j + 1) * b.shape[1]] = a[i, j] * b
    return found


def test_lokr(tmp_path: Path) -> None:
    one, two, alpha = drawn(4, 2), drawn(32, 8), torch.tensor(6.0)
    # Two whole factors have no rank to divide alpha by.
    same(kohya(LINEAR, lokr_w1=one, lokr_w2=two, alpha=alpha), LINEAR, kron(one, two), tmp_path)
    a, b = drawn(32, 3), drawn(3, 8)
    held = kohya(LINEAR, lokr_w1=one, lokr_w2_a=a, lokr_w2_b=b, alpha=alpha)
    same(held, LINEAR, 2 * kron(one, a @ b), tmp_path)
    c, d = drawn(4, 1), drawn(1, 2)
    held = kohya(LINEAR, lokr_w1_a=c, lokr_w1_b=d, lokr_w2_a=a[:, :1], lokr_w2_b=b[:1], alpha=alpha)
    assert same(held, LINEAR, 6 * kron(c @ d, a[:, :1] @ b[:1]), tmp_path).rank() == 1
    whole = drawn(4, 8, 3, 3)
    same(kohya(CONV, lokr_w1=drawn(4, 4), lokr_w2=whole), CONV, kron(drawn(4, 4), whole), tmp_path)
    p, q, core = drawn(2, 4), drawn(2, 8), drawn(2, 2, 3, 3)
    held = kohya(CONV, lokr_w1=drawn(4, 4), lokr_w2_a=p, lokr_w2_b=q, lokr_t2=core, alpha=torch.tensor(1.0))
    same(held, CONV, 0.5 * kron(drawn(4, 4), convolved(p.T, core, q)), tmp_path)


def test_differences_of_weights_biases_and_norms(tmp_path: Path) -> None:
    same(kohya(CONV, diff=drawn(16, 32, 3, 3)), CONV, drawn(16, 32, 3, 3), tmp_path)
    same(kohya(NORM, w_norm=drawn(32)), NORM, drawn(32), tmp_path)
    same(kohya(NORM, b_norm=drawn(32)), NORM, drawn(32), tmp_path, "bias")
    same(kohya(CONV, diff_b=drawn(16)), CONV, drawn(16), tmp_path, "bias")
    both = read(kohya(LINEAR, diff=drawn(128, 16), diff_b=drawn(128)), tmp_path)
    assert both.provenance["forms"] == {"difference": 1, "bias": 1}
    host = host_of("sd")
    before = host.root.get_parameter(f"{LINEAR}.bias").clone()
    with both.applied(host):
        assert largest(host.root.get_parameter(f"{LINEAR}.bias"), before + drawn(128)) < 1e-6


@pytest.mark.parametrize("layer", [LINEAR, CONV])
@pytest.mark.parametrize("by", ["rows", "columns", "peft"])
def test_dora_norms_the_axis_that_its_writer_norms(layer: str, by: str, tmp_path: Path) -> None:
    weight = host_of("sd").root.get_parameter(f"{layer}.weight").detach()
    up, down = drawn(len(weight), 2), drawn(2, weight[0].numel()).reshape(2, *weight.shape[1:])
    new = weight + 0.5 * (up @ down.flatten(1)).reshape(weight.shape)
    ones = [1] * (weight.dim() - 2)
    if by == "columns":
        size = drawn(weight.shape[1]).abs().reshape(1, -1, *ones)
        wanted = torch.stack([size[0, i] * new[:, i] / new[:, i].norm() for i in range(weight.shape[1])], 1)
    else:
        size = drawn(len(weight)).abs().reshape(-1, 1, *ones)
        wanted = torch.stack([size[i, 0] * new[i] / new[i].norm() for i in range(len(weight))])
    end = {"lora_magnitude_vector": size.reshape(1, -1, 1, 1) if ones else size.flatten()}
    end = end if by == "peft" else {"dora_scale": size}
    held = kohya(layer, lora_down__weight=down, lora_up__weight=up.reshape(len(up), 2, *ones), alpha=torch.tensor(1.0))
    same({**held, **kohya(layer, **end)}, layer, wanted - weight, tmp_path)


OLD = "up_blocks.0.attentions.0.transformer_blocks.0.attn1"
CLIP = "encoder.layers.0.self_attn"


@pytest.mark.parametrize(
    ("family", "key", "layer"),
    [
        ("sd", f"unet.{OLD}.processor.to_out_lora.@.weight", f"unet.{OLD}.to_out.0"),
        ("sd", f"{OLD}.processor.to_k_lora.@.weight", f"unet.{OLD}.to_k"),
        ("sd", f"unet.{OLD}.to_q.lora_linear_layer.@.weight", f"unet.{OLD}.to_q"),
        ("sd", f"text_encoder.text_model.{CLIP}.to_out_lora.@.weight", f"text_encoder.{CLIP}.out_proj"),
        ("sd", f"text_encoder.{CLIP}.k_proj.lora_linear_layer.@.weight", f"text_encoder.{CLIP}.k_proj"),
        ("sd", f"unet.{OLD}.to_q.lora.@.weight", f"unet.{OLD}.to_q"),
        ("sd", "lora_unet_time_embed_0.lora_@.weight", "unet.time_embedding.linear_1"),
        ("sd", "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_@.weight", "text_encoder.encoder.layers.0.mlp.fc1"),
        ("sd", "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_@.weight",
         "text_encoder.encoder.layers.0.mlp.fc1"),
        ("sd", f"diffusion_model.{OLD}.to_q.lora_@.weight", f"unet.{OLD}.to_q"),
        ("sdxl", "lora_unet_label_emb_0_0.lora_@.weight", "unet.add_embedding.linear_1"),
        ("sdxl", "lora_te2_text_projection.lora_@.weight", "text_encoder_2.text_projection"),
        ("sd3", "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_@.weight",
         "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q"),
        ("flux", "lora_te3_encoder_block_0_layer_1_DenseReluDense_wi.lora_@.weight",
         "text_encoder_2.encoder.block.0.layer.1.DenseReluDense.wi"),
        ("flux", "lora_transformer_single_transformer_blocks_0_proj_out.lora_@.weight",
         "transformer.single_transformer_blocks.0.proj_out"),
        ("flux", "lycoris_transformer_blocks_1_attn_to_k.lora_@.weight", "transformer.transformer_blocks.1.attn.to_k"),
    ],
)  # fmt: skip
def test_names_that_were_and_are_written(family: str, key: str, layer: str, tmp_path: Path) -> None:
    out, inner = host_of(family).root.get_parameter(f"{layer}.weight").shape
    patch = read({key.replace("@", "down"): drawn(2, inner), key.replace("@", "up"): drawn(out, 2)}, tmp_path, family)
    assert list(patch.deltas) == [f"{layer}.weight"]


DOWN, UP = drawn(2, 16), drawn(128, 2)
WHOLE = kohya(LINEAR, lora_down__weight=DOWN, lora_up__weight=UP)


def test_keys_left_over_are_named_and_may_be_left_out(tmp_path: Path) -> None:
    more = {f"lora_unet_z{i}.lora_down.weight": DOWN.clone() for i in range(5)}
    with pytest.raises(
        WrongBase, match=r"5 of the 7 .*'lora_unet_z0\.lora_down\.weight', .*_z2.*, \.\.\. .*--allow-unm"
    ):
        read({**WHOLE, **more}, tmp_path)
    patch = read({**WHOLE, **more}, tmp_path, allow_unmatched=True)
    assert list(patch.deltas) == [f"{LINEAR}.weight"]
    assert patch.provenance["unmatched"] == sorted(more)
    with pytest.raises(WrongBase, match="5 of the 5"):
        read(more, tmp_path, allow_unmatched=True)
    alone = {**WHOLE, "lora_unet_conv_in.alpha": torch.tensor(1.0)}
    with pytest.raises(WrongBase, match=r"'lora_unet_conv_in\.alpha'"):
        read(alone, tmp_path)
    scaled = kohya(CONV, diff=drawn(16, 32, 3, 3), alpha=torch.tensor(1.0))
    with pytest.raises(WrongBase, match=r"conv1\.alpha"):
        read(scaled, tmp_path)
    text = "base_model.model.text_model.encoder.layers.0.mlp.fc1"
    with pytest.raises(BadRequest, match="text_encoder and of text_encoder_2"):
        read({f"{text}.lora_A.weight": drawn(2, 16), f"{text}.lora_B.weight": drawn(32, 2)}, tmp_path, "sdxl")


@pytest.mark.parametrize(
    ("tensors", "error", "says"),
    [
        (kohya(LINEAR, lora_down__weight=DOWN), Damaged, "not the other"),
        (kohya(LINEAR, hada_w1_a=UP, hada_w1_b=DOWN, hada_w2_a=UP), Damaged, "hada_w2_b is missing"),
        (kohya(LINEAR, lokr_w1=UP, lokr_w2_a=UP), Damaged, "lokr_w2_b is missing"),
        (kohya(LINEAR, lokr_w1=drawn(4, 2), lokr_w2=drawn(32, 9)), Damaged, "does not fit a weight of"),
        (kohya(LINEAR, hada_w1_a=drawn(9999, 1), hada_w1_b=drawn(1, 9999), hada_w2_a=UP, hada_w2_b=DOWN),
         Damaged, "fit"),
        (kohya(CONV, hada_w1_a=drawn(1, 16), hada_w1_b=drawn(1, 32), hada_t1=drawn(1, 1, 99, 99), hada_w2_a=UP,
               hada_w2_b=DOWN), Damaged, "fit"),
        (kohya(LINEAR, diff=drawn(128, 17)), Damaged, "does not fit"),
        (kohya(LINEAR, diff=torch.full((128, 16), torch.nan)), Damaged, "not finite"),
        (kohya(LINEAR, lora_down__weight=torch.full((2, 16), 1e38), lora_up__weight=UP, dora_scale=drawn(128, 1)),
         Damaged, "finite"),
        ({**WHOLE, **kohya(LINEAR, dora_scale=drawn(7, 1))}, Damaged, "does not fit"),
        ({**WHOLE, **kohya(LINEAR, hada_w1_a=UP)}, Damaged, "LoRA and LoHa"),
        ({**WHOLE, **kohya(LINEAR, lora_mid__weight=drawn(3, 2, 1, 1))}, Damaged, "does not fit"),
        (kohya(LINEAR, lora_down__weight=DOWN.to(torch.float8_e4m3fn), lora_up__weight=UP), Unsupported,
         "float8_e4m3fn"),
        (kohya(LINEAR, lora_down__weight=DOWN.to(torch.int8), lora_up__weight=UP), Unsupported, "8 bits"),
        (kohya(LINEAR, oft_diag=DOWN, lora_down__weight=DOWN), (Unsupported, Damaged), "OFT|not the other"),
        ({**WHOLE, **kohya(CONV, oft_blocks=DOWN)}, Unsupported, "OFT turns weights"),
        ({**WHOLE, "unet.conv_in.lora_embedding_A": DOWN}, Unsupported, "table of tokens"),
    ],
)  # fmt: skip
def test_hostile_files_are_refused_in_words(tensors: dict[str, Tensor], error: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        read(tensors, tmp_path)


@pytest.mark.parametrize(
    ("said", "error", "says"),
    [
        ({"unet.peft_type": "OFT"}, Unsupported, "'OFT'"),
        ({"unet.init_lora_weights": "pissa_niter_4"}, Unsupported, "takes the first factors off"),
        ({"unet.alpha_pattern": {"(a+)+b": 4}}, Unsupported, "several names"),
        ({"unet.alpha_pattern": {"a": "x"}, "r": 2}, None, ""),
        ({"unet.alpha_pattern": {"net.0.proj": "x"}}, Damaged, "a number is expected"),
        ({"unet.lora_alpha": 1e300}, Damaged, "a number is expected"),
        ({"unet.alpha_pattern": [1]}, Damaged, "no table"),
        ({"unet.r": 0}, Damaged, "at least 1"),
    ],
)
def test_headers_that_say_alpha_are_held_to_what_they_may_say(said: Any, error: Any, says: str, tmp_path: Path) -> None:
    meta = {"lora_adapter_metadata": json.dumps(said)}
    if error is None:
        read(WHOLE, tmp_path, meta=meta)
        return
    tensors = kohya(LINEAR, lokr_w1=drawn(4, 2), lokr_w2=drawn(32, 8)) if "unet.r" in said else WHOLE
    with pytest.raises(error, match=says):
        read(tensors, tmp_path, meta=meta)


def test_folders_without_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="holds neither"):
        read_patch(tmp_path, host_of("sd"))
    (tmp_path / "adapter_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(Damaged, match="pickle"):
        read_patch(tmp_path, host_of("sd"))
