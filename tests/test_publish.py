"""The folder for the hub: its card is one that the hub's own client reads, and nothing in it is markup of others."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from hosts_fixtures import host_of, pipeline_of
from palimpsest import cli
from palimpsest.core.errors import BadRequest
from palimpsest.core.patch import Hook, Patch
from palimpsest.export import read_patch
from palimpsest.receipt.document import sealed
from palimpsest.run import publish
from palimpsest.run.model_card import escaped, fenced
from test_export import everywhere
from words_fixture import word_for

EVIL = "<img src=x onerror=alert(1)> [x](javascript:1) `|*_ ---\n# head \x1b[31m"


def receipt_of(patch: Patch, folder: Path, name: str = "star") -> Path:
    """A receipt about a patch with one reading; what a card is made of, not what an audit would find."""
    reading = {
        "name": "presence", "value": 3.0, "concept": name, "role": "target", "low": 1.0, "high": 9.0, "n": 60,
        "unit": "%", "before": 98.0, "floor": None, "p": 0.0, "visible": None, "evaluator": None,
        "change": None, "references": None, "curve": None, "row": None, "detail": {}, "verdict": "changed",
    }  # fmt: skip
    data: dict[str, Any] = {
        "schema": "palimpsest/receipt/3", "subject": "generator", "command": f"palimpsest erase {name} ``` --x",
        "headline": "gone", "summary": [{"tone": "good", "text": f"{name} is gone"}],
        "request": {"target": [{"name": "star", "kind": "object", "prompts": [], "labels": [], "images": []}],
                    "keep": [], "toward": []},
        "base": {"name": "m", "fingerprint": patch.base},
        "edited": {"kind": "patch", "sha256": patch.sha256(), "base": patch.base, "file": "patch.safetensors",
                   "bytes": patch.nbytes()},
        "method": None, "plan": {}, "evaluators": {}, "size": None, "pictures": {}, "measures": {}, "vectors": None,
        "readings": [reading], "versions": {}, "shown": [],
        "run": {"created": "2026-01-31T12:00:00Z", "audit": {}, "edit": {}},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "receipt.json").write_text(json.dumps(sealed(data)))
    (folder / "receipt.html").write_text("page")
    return folder


def test_the_hubs_client_reads_the_card_and_diffusers_the_lora(tmp_path: Path) -> None:
    host = host_of("sd")
    patch = replace(everywhere(host, "unet"), words={"<crown>": word_for(host, 2)})
    patch = replace(patch, provenance={"method": "erase/uce", "request": {"target": [{"name": "star"}]}, "seed": 4})
    beside = receipt_of(patch, tmp_path / "star")
    done = publish(
        patch, host, tmp_path / "no-star", receipt=beside, base_model="acme/base", licence="apache-2.0", rank=2
    )
    assert set(done.files) == {
        "README.md", "embeddings/crown.safetensors", "patch.safetensors", "pytorch_lora_weights.safetensors",
        "receipt.html", "receipt.json",
    }  # fmt: skip
    card = ModelCard.load(tmp_path / "no-star" / "README.md")
    told = card.data.to_dict()
    assert told == {
        "base_model": "acme/base", "library_name": "diffusers", "license": "apache-2.0",
        "pipeline_tag": "text-to-image", "tags": ["lora", "textual_inversion", "palimpsest"],
    }  # fmt: skip
    validate_repo_id(told["base_model"])
    assert yaml.safe_load(card.data.to_yaml()) == told
    text = card.text
    assert "about star, made by UCE" in text
    assert re.search(r"\| presence \| star \\\(target\\\) \| 98.% \| 3.% \| 1.% to 9.% \| changed \|", text)
    assert "cut to rank 2, which leaves out" in text
    assert "palimpsest verify receipt.json" in text
    calls = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert calls is not None
    lines = calls[1].replace("this/folder", str(done.path)).splitlines()
    pipe = pipeline_of("sd")
    for line in lines[lines.index("pipe = DiffusionPipeline.from_pretrained('acme/base')") + 1 :]:
        exec(line, {"pipe": pipe})
    assert pipe.get_active_adapters()
    assert "<crown>_1" in pipe.tokenizer.get_vocab()
    assert Patch.load(done.path / "patch.safetensors").sha256() == patch.sha256()
    assert set(read_patch(done.path, host).deltas) == set(patch.deltas)


def test_what_others_wrote_is_no_markup(tmp_path: Path) -> None:
    host = host_of("sd")
    made = {
        "method": EVIL,
        "request": {"target": [{"name": EVIL}]},
        "parameters": {EVIL: EVIL},
        "versions": {"x": EVIL},
    }
    patch = Patch(base=host.fingerprint(), deltas=everywhere(host, "unet").deltas, provenance=made)
    beside = receipt_of(patch, tmp_path / "r", EVIL)
    publish(patch, host, tmp_path / "out", receipt=beside)
    text = ModelCard.load(tmp_path / "out" / "README.md").text
    outside = re.sub(r"^(`{3,})(?!`).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "<img" not in outside
    assert "](javascript" not in outside
    assert "\n# head" not in outside
    assert "\x1b" not in text
    assert "base_model" not in ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert escaped("a|b*") == r"a\|b\*"
    assert fenced("a ```` b", "text") == "`````text\na ```` b\n`````"


def test_what_is_no_lora_goes_out_as_a_patch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = host_of("sd")
    patch = Patch(base=host.fingerprint(), hooks=(Hook(id="erase/sld"),), deltas=everywhere(host, "unet").deltas)
    plain = replace(patch, hooks=())
    with pytest.raises(BadRequest, match="about another patch"):
        publish(plain, host, tmp_path / "a", receipt=receipt_of(patch, tmp_path / "r"))
    with pytest.raises(BadRequest, match="no licence"):
        publish(plain, host, tmp_path / "a", licence="MIT License")
    with pytest.raises(BadRequest, match="cannot be a model's name"):
        publish(plain, host, tmp_path / "a", base_model="a b/c")
    assert not (tmp_path / "a").exists()
    path = patch.save(tmp_path / "p" / "patch.safetensors")
    told = ["export", "--patch", str(path), "--model", str(host.folder), "--out", str(tmp_path / "out")]
    assert cli.main([*told, "--format", "hub"]) == 0
    assert "No LoRA is among them: erase/sld acts while the model runs" in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict()["library_name"] == "palimpsest"
    assert "Nothing: there is no receipt" in card.text
    assert str(host.folder) not in card.text
    assert cli.main([*told, "--format", "peft", "--licence", "mit", "--overwrite"]) == 2
    assert "--format hub" in capsys.readouterr().err
