"""LoRAs of other programs, with or without words, become the patch that they were made of."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_unet_lora_key, _maybe_map_sgm_blocks_to_diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hosts_fixtures import host_of, largest, unet
from palimpsest import cli, run
from palimpsest.core.delta import Dense, LowRank
from palimpsest.core.errors import BadRequest, Damaged, PalimpsestError, Unsupported, WrongBase
from palimpsest.core.patch import Patch
from palimpsest.export import export_patch, names, read_patch
from test_export import everywhere
from words_fixture import word_for


def same_deltas(found: Patch, patch: Patch, host: Any) -> None:
    assert set(found.deltas) == set(patch.deltas)
    for name, delta in patch.deltas.items():
        shape = host.root.get_parameter(name).shape
        dense = delta.dense(shape)
        assert largest(found.deltas[name].dense(shape), dense) <= 1e-5 * float(dense.abs().max()), name


def test_what_was_exported_is_read_wherever_a_patch_is(tmp_path: Path) -> None:
    host = host_of("sd")
    patch = everywhere(host, "unet", "text_encoder")
    path = export_patch(patch, host, "kohya", tmp_path).path
    found = read_patch(path, host)
    assert run.edited(path, host).sha256() == found.sha256()
    same_deltas(found, patch, host)


@pytest.mark.parametrize(("family", "word"), [("sd", "<crown>"), ("sdxl", "sks")])
def test_a_bundle_holds_weights_and_words(family: str, word: str, tmp_path: Path) -> None:
    host = host_of(family)
    patch = replace(everywhere(host, "unet"), words={word: word_for(host, 3), "<b>": word_for(host, seed=1)})
    path = export_patch(patch, host, "bundle", tmp_path).path
    keys = {key for key in load_file(path) if key.startswith("bundle_emb.")}
    parts = ("string_to_param.*",) if family == "sd" else ("clip_l", "clip_g")
    assert keys == {f"bundle_emb.{w}.{part}" for w in (word, "<b>") for part in parts}
    found = read_patch(path, host)
    same_deltas(found, patch, host)
    assert set(found.words) == {word, "<b>"}
    assert all(found.words[w].same(meant) for w, meant in patch.words.items())
    command = ["export", "--patch", str(patch.save(tmp_path / "p")), "--format", "bundle", "--out", str(tmp_path / "o")]
    assert cli.main([*command, "--model", str(host.folder)]) == 0
    assert load_file(tmp_path / "o" / "o.safetensors").keys() == load_file(path).keys()


def test_alpha_and_strength_scale_the_change(tmp_path: Path) -> None:
    host = host_of("sd")
    layer = next(iter(host.parts("cross_key")))
    down, up = torch.ones(2, 16), torch.ones(host.root.get_parameter(f"{layer}.weight").shape[0], 2)
    for end, key in (("lora.down", "lora.up"), ("lora_A", "lora_B")):
        held = {f"{names.peft(layer)}.{end}.weight": down, f"{names.peft(layer)}.{key}.weight": up}
        held[f"{names.peft(layer)}.alpha"] = torch.tensor(1.0)
        save_file(held, path := tmp_path / "l.safetensors")
        delta = read_patch(path, host).deltas[f"{layer}.weight"]
        assert torch.equal(delta.dense(torch.Size((len(up), 16))), torch.ones(len(up), 16))


def test_names_of_the_original_code_are_those_that_diffusers_reads() -> None:
    network = unet(layers_per_block=2)
    layers = [name for name, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    read, config = dict[str, tuple[str, str]](), SimpleNamespace(layers_per_block=2)
    for name in layers:
        for key in names.originals(f"unet.{name}"):
            (theirs,) = _maybe_map_sgm_blocks_to_diffusers({f"{key}.lora_down.weight": 0}, config)
            said = _convert_unet_lora_key(theirs.partition(".")[0]).removeprefix("unet.")
            read[key] = re.sub(r"\bto\.(q|k|v|out)", r"to_\1", said.replace(".processor", "")), name
    assert len(read) > 0.8 * len(layers)
    # Where a block has no attention its upsampler stands first; diffusers reads SDXL's alone, which have some.
    wrong = {key: pair for key, pair in read.items() if pair[0] != pair[1] and not key.endswith("_1_conv")}
    assert not wrong
    assert all(names.originals(f"unet.{name}") for name in layers if "blocks." in name or "mid_block." in name)


LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
DOWN, UP = torch.ones(2, 16), torch.ones(16, 2)


@pytest.mark.parametrize(
    ("tensors", "error", "says"),
    [
        ({A: DOWN}, Damaged, "not the other"),
        ({A.replace("to_k", "to_z"): DOWN, B.replace("to_k", "to_z"): UP}, WrongBase, "to_z"),
        ({A: DOWN, B: UP, f"{LAYER}.dora_scale": torch.ones(9)}, Damaged, "does not fit"),
        ({A: DOWN, B: UP, "lora_unet_x.hada_w1_a": UP}, WrongBase, "1 of the 3 .*lora_unet_x.hada_w1_a"),
        ({A: torch.ones(16), B: UP}, Damaged, "no matrices"),
        ({A: DOWN.int(), B: UP}, Damaged, "no matrices"),
        ({A: torch.ones(0, 16), B: torch.ones(16, 0)}, Damaged, "no matrices"),
        ({A: DOWN, B: torch.full((16, 2), torch.nan)}, Damaged, "not finite"),
        ({A: DOWN, B: torch.ones(9, 2)}, Damaged, "does not fit"),
        ({A: torch.ones(2, 9), B: UP}, Damaged, "does not fit"),
        ({A: DOWN, B: torch.ones(16, 3)}, Damaged, "factors|product|rank|fit"),
        ({A: DOWN, B: UP, f"{LAYER}.alpha": torch.tensor(torch.inf)}, Damaged, "no number"),
        ({A: DOWN, B: UP, f"{LAYER}.alpha": torch.ones(2)}, Damaged, "no number"),
        ({A: DOWN, B: UP, f"{LAYER}.lora.down.weight": DOWN, f"{LAYER}.lora.up.weight": UP}, Damaged, "twice"),
        ({A: DOWN, B: UP, "bundle_emb.<a>.clip_l": torch.ones(1, 9)}, BadRequest, "another family"),
        ({A: DOWN, B: UP, "bundle_emb.a b.clip_l": torch.ones(1, 16)}, Damaged, "no spaces"),
        (
            {A: DOWN, B: UP, "bundle_emb.<a>.clip_l": torch.ones(1, 16), "bundle_emb.<a>.*": torch.ones(1, 16)},
            Damaged,
            "twice",
        ),
    ],
)
def test_hostile_loras_are_refused_in_words(
    tensors: dict[str, Tensor], error: type[Exception], says: str, tmp_path: Path
) -> None:
    host = host_of("sd")
    held = {key: t.clone() for key, t in tensors.items()}
    save_file(held, path := tmp_path / "l.safetensors")
    before = host.fingerprint()
    with pytest.raises(error, match=says) as refused:
        read_patch(path, host)
    assert isinstance(refused.value, PalimpsestError)
    assert host.fingerprint() == before


def test_what_no_bundle_can_hold_is_refused(tmp_path: Path) -> None:
    host = host_of("sd")
    plain = Patch(base=host.fingerprint(), deltas={f"{LAYER}.weight": LowRank(up=UP, down=DOWN)})
    with pytest.raises(BadRequest, match="no word to bundle"):
        export_patch(plain, host, "bundle", tmp_path)
    with pytest.raises(Unsupported, match="has a dot"):
        export_patch(replace(plain, words={"a.b": word_for(host)}), host, "bundle", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert isinstance(plain.deltas[f"{LAYER}.weight"], (Dense, LowRank))
