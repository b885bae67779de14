"""A pipeline's folder that plain diffusers reads draws what the patch draws, words and all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from hosts_fixtures import SIZE, host_of, largest
from palimpsest import cli
from palimpsest.core.delta import Dense
from palimpsest.core.errors import BadRequest, Unsupported, WrongBase
from palimpsest.core.patch import Hook, Patch
from palimpsest.core.sampling import Sampling
from palimpsest.export.pipeline import export_pipeline
from palimpsest.hosts.load import load
from test_export import everywhere
from words_fixture import word_for

HOW = Sampling(steps=2, size=SIZE, guidance=3.0)
PROMPT = "a red <crown>, star"


def drawn(folder: Path, prompt: str) -> Tensor:
    pipeline: Any = DiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    more = {"num_inference_steps": HOW.steps, "guidance_scale": HOW.guidance, "height": SIZE, "width": SIZE}
    return pipeline(prompt, generator=torch.Generator().manual_seed(3), output_type="pt", **more).images


@pytest.mark.parametrize(("family", "vectors"), [("sd", 2), ("sdxl", 2), ("sd3", 0), ("flux", 0)])
def test_plain_diffusers_draws_what_the_patch_draws(family: str, vectors: int, tmp_path: Path) -> None:
    host = host_of(family)
    words = {"<crown>": word_for(host, vectors), "gem": word_for(host, 1, seed=4)} if vectors else {}
    deltas = everywhere(host, "unet", "transformer", "text_encoder").deltas
    bias = next(name for name, _ in host.root.named_parameters() if name.endswith("norm1.bias") or "norm1" in name)
    deltas = {**deltas, bias: Dense(value=torch.full(host.root.get_parameter(bias).shape, 0.05))}
    patch = Patch(base=host.fingerprint(), deltas=deltas, words=words)
    before = host.fingerprint()
    done = export_pipeline(patch, host, tmp_path / "whole")
    assert host.fingerprint() == before
    prompt = PROMPT if vectors else "a red star"
    with patch.applied(host):
        found = host.sample([prompt], [3], HOW)
    assert largest(found, host.sample([prompt], [3], HOW)) > 1e-2
    assert largest(found, drawn(done.path, prompt)) < 1e-4
    assert done.tokens == ({"<crown>": ("<crown>", "<crown>_1"), "gem": ("gem",)} if words else {})
    if family == "sd":  # and so does the toolkit; a word inside a longer one is none
        again = load(done.path)
        assert largest(found, again.sample([prompt], [3], HOW)) < 1e-4
        said = again.pipeline.tokenizer.tokenize("a gem, gems")
        assert said.count("gem") == 1


def test_what_a_pipeline_cannot_say_is_refused(tmp_path: Path) -> None:
    host, out = host_of("sd"), tmp_path / "out"
    plain = Patch(base=host.fingerprint(), words={"star": word_for(host)})
    with pytest.raises(BadRequest, match="knows 'sta' already"):
        export_pipeline(replace(plain, words={"sta": word_for(host)}), host, out)
    with pytest.raises(BadRequest, match="both be the token '<a>_1'"):
        export_pipeline(replace(plain, words={"<a>": word_for(host, 2), "<a>_1": word_for(host)}), host, out)
    with pytest.raises(Unsupported, match="erase/sld"):
        export_pipeline(Patch(base=plain.base, hooks=(Hook(id="erase/sld"),)), host, out)
    with pytest.raises(WrongBase):
        export_pipeline(replace(plain, base="0" * 64), host, out)
    flux = host_of("flux")
    word = word_for(flux, 1, clip=True, reads_as="star")
    with pytest.raises(Unsupported, match="read by a T5"):
        export_pipeline(Patch(base=flux.fingerprint(), words={"<a>": word}), flux, out)
    three = host_of("sd3_without_t5")
    with pytest.raises(Unsupported, match="writes out no word of several"):
        export_pipeline(Patch(base=three.fingerprint(), words={"<a>": word_for(three, 2)}), three, out)
    assert not out.exists()


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = host_of("sd")
    patch = replace(everywhere(host, "unet"), words={"<crown>": word_for(host, 2)})
    told = ["export", "--patch", str(patch.save(tmp_path / "p.safetensors")), "--format", "pipeline"]
    assert cli.main([*told, "--out", str(tmp_path / "whole")]) == 2
    assert "--model" in capsys.readouterr().err
    assert cli.main([*told, "--out", str(tmp_path / "whole"), "--rank", "2"]) == 2
    assert "--rank cuts LoRAs" in capsys.readouterr().err
    told += ["--model", str(host.folder), "--out", str(tmp_path / "whole")]
    assert cli.main(told) == 0
    assert "<crown>: 2 tokens" in capsys.readouterr().out
    config = json.loads((tmp_path / "whole" / "text_encoder" / "config.json").read_text())
    assert config["vocab_size"] == 195
    assert cli.main(told) == 2
    assert "exists" in capsys.readouterr().err
