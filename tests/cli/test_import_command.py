"""palimpsest import: a patch file of other programs' files, what it says of them, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hosts_fixtures import folder_of, host_of
from palimpsest.cli import main
from palimpsest.core.patch import Patch
from palimpsest.export import export_patch, read_patch
from test_export import everywhere

LAYER = "lora_unet_up_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
HELD = {f"{LAYER}.lora_down.weight": torch.ones(2, 16), f"{LAYER}.lora_up.weight": torch.ones(16, 2)}


def test_a_lora_becomes_a_patch_that_is_exported_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host, model = host_of("sd"), str(folder_of("sd"))
    path = export_patch(everywhere(host, "unet", "text_encoder"), host, "kohya", tmp_path / "lora").path
    assert main(["import", str(path), "--model", model, "--out", str(tmp_path / "in")]) == 0
    said = capsys.readouterr().out
    assert "LoRA, rank 3" in said
    assert "unet     83 of 83 layers; the change is" in said
    assert "% of the weights it changes, at most" in said
    patch = Patch.load(tmp_path / "in" / "patch.safetensors")
    assert patch.provenance == {"method": "import", "file": "lora.safetensors", "forms": {"LoRA": 101}, "ranks": [3, 3]}
    out = ["--out", str(tmp_path / "out"), "--model", model]
    assert main(["export", "--patch", str(tmp_path / "in" / "patch.safetensors"), "--format", "kohya", *out]) == 0
    again = read_patch(tmp_path / "out" / "out.safetensors", host)
    for name, delta in patch.deltas.items():
        shape = host.root.get_parameter(name).shape
        assert torch.allclose(again.deltas[name].dense(shape), delta.dense(shape), atol=1e-6)


def test_what_has_no_place_is_named_and_may_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = "lora_unet_\x1b[31mz.lora_down.weight"
    save_file({**HELD, odd: torch.ones(2, 16)}, path := tmp_path / "l.safetensors")
    args = ["import", str(path), "--model", str(folder_of("sd")), "--out", str(tmp_path / "in")]
    assert main(args) == 2
    assert "--allow-unmatched" in (said := capsys.readouterr().err)
    assert "z.lora_down.weight" in said
    assert "\x1b" not in said
    assert not (tmp_path / "in").exists()
    assert main([*args, "--allow-unmatched", "--name", "pixels"]) == 0
    assert "left out 1 tensors" in (said := capsys.readouterr().out)
    assert "\x1b" not in said
    patch = Patch.load(tmp_path / "in" / "patch.safetensors")
    assert patch.provenance["file"] == "pixels"
    assert len(patch.provenance["unmatched"]) == 1
    assert main([*args, "--allow-unmatched"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "in" / "patch.safetensors"), *args[2:4], "--out", str(tmp_path / "b")]) == 2
    assert "already" in capsys.readouterr().err


def test_folders_and_biases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = {**HELD, "lora_unet_conv_in.diff_b": torch.ones(8)}
    (tmp_path / "mine").mkdir()
    save_file(held, tmp_path / "mine" / "pytorch_lora_weights.safetensors")
    out = tmp_path / "in"
    assert main(["import", str(tmp_path / "mine"), "--model", str(folder_of("sd")), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "1 x bias, 1 x LoRA, rank 2" in said
    assert "1 of 83 layers and 1 other tensors" in said
    assert Patch.load(out / "patch.safetensors").provenance["file"] == "mine"
