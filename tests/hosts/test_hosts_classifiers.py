"""Classifiers: logits, features, labels, preprocessing, folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.host import Classifier, Denoiser
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.hosts.load import load

LABELS = {0: "cat", 1: "dog", 2: "fish"}
PREPROCESSOR = {"size": {"height": 16, "width": 16}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


def pictures(n: int = 2, side: int = 16) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def save(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


def resnet(folder: Path) -> Path:
    torch.manual_seed(0)
    labels = {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **labels)
    return save(ResNetForImageClassification(config), folder)


def vit(folder: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    labels = {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
    return save(ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **sizes, **labels)), folder)


@pytest.mark.parametrize("build", [resnet, vit])
def test_a_folder_is_a_classifier(build: type, tmp_path: Path) -> None:
    host = load(build(tmp_path / "model"))
    assert isinstance(host, Classifier)
    assert not isinstance(host, Denoiser)
    assert isinstance(host, ClassifierHost)
    assert host.labels == ("cat", "dog", "fish")
    images = pictures()
    mean, std = (torch.tensor(PREPROCESSOR[k]).view(-1, 1, 1) for k in ("image_mean", "image_std"))
    wanted = host.root(pixel_values=(images - mean) / std).logits
    logits = host.logits(images)
    assert logits.shape == (2, 3)
    assert torch.allclose(logits, wanted, atol=1e-6)
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    features = host.embed(images)
    (head,) = host.parts("head").values()
    linear = next(m for m in head.modules() if isinstance(m, nn.Linear))
    assert torch.allclose(linear(features), logits, atol=1e-5)
    assert len(host.parts("backbone")) == 1
    assert host.parts("denoiser") == {}
    assert not any(m._forward_pre_hooks for m in host.root.modules())
    assert load(tmp_path / "model").fingerprint() == host.fingerprint()


def test_any_module_with_a_head() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 2))
    host = ClassifierHost(model, name="mine", labels=["yes", "no"], head="3")
    features, logits = host.read(pictures(4, side=4))
    assert features.shape == (4, 5)
    assert torch.equal(features, host.embed(pictures(4, side=4)))
    assert torch.equal(logits, host.logits(pictures(4, side=4)))
    assert torch.equal(model[3](features), logits)
    assert host.parts("backbone") == {"": model}
    images = pictures(1, side=4).requires_grad_(True)
    (gradient,) = torch.autograd.grad(host.logits(images)[0, 0], images)
    assert gradient.abs().sum() > 0
    with pytest.raises(BadRequest, match="no module 'top' to be its head; its children are 0, 1, 2, 3"):
        ClassifierHost(model, name="mine", labels=["yes", "no"], head="top")


def test_damaged_folders(tmp_path: Path) -> None:
    folder = resnet(tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(Damaged, match=r"lacks preprocessor_config\.json"):
        load(folder)
    shutil.rmtree(folder)
    resnet(folder)
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(Damaged, match="a pickle"):
        load(folder)
    (folder / "pytorch_model.bin").rename(weights)
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(Damaged, match="truncated or damaged"):
        load(folder)
