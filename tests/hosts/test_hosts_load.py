"""Models are found from their files; what cannot be loaded says why and what to do; nothing reaches the network."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import palimpsest
from hosts_fixtures import CLASSES, folder_of, host_of
from palimpsest import tiny
from palimpsest.core.errors import BadRequest, Damaged, Unsupported
from palimpsest.core.sampling import Sampling
from palimpsest.hosts.diffusion import DiffusionHost
from palimpsest.hosts.load import load


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Any attempt to reach the network fails the test; the local cache is empty."""

    def refuse(*args: object) -> None:
        raise AssertionError(f"tried to reach the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def copy_of(family: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder_of(family), tmp_path / family))


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_a_host_knows_what_loads_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_of("sd", tmp_path)
    monkeypatch.chdir(tmp_path)
    host = load("sd", dtype="bfloat16")
    monkeypatch.chdir("/")
    origin = host.origin
    again = load(origin.model, device=origin.device, dtype=origin.dtype, factory=origin.factory, labels=origin.labels)
    assert again.origin == origin
    assert again.fingerprint() == host.fingerprint()
    assert again.dtype == torch.bfloat16


@pytest.mark.parametrize("family", CLASSES)
def test_every_family_is_found_from_its_folder(family: str) -> None:
    wanted = {"sd": "SDHost", "sdxl": "SDXLHost", "sd3": "SD3Host", "flux": "FluxHost"}[family.split("_")[0]]
    host = load(folder_of(family))
    assert type(host).__name__ == wanted
    assert isinstance(host, DiffusionHost)
    assert host.folder == folder_of(family)
    assert host.prediction == {"sd": "epsilon", "sd_v": "v_prediction", "sdxl": "epsilon"}.get(family, "flow")
    assert host.dtype == torch.float32


def test_the_package_itself_loads() -> None:
    assert palimpsest.load(str(folder_of("sd"))).fingerprint() == host_of("sd").fingerprint()


def test_pipelines_for_other_tasks_and_without_a_safety_checker_folder(tmp_path: Path) -> None:
    folder = copy_of("sd", tmp_path)

    def as_published(index: dict[str, Any]) -> None:
        index["_class_name"] = "StableDiffusionImg2ImgPipeline"
        index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        index["requires_safety_checker"] = True

    edit_index(folder, as_published)
    assert load(folder).fingerprint() == host_of("sd").fingerprint()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_precision(dtype: str) -> None:
    host = load(folder_of("sd"), dtype=dtype)
    assert isinstance(host, DiffusionHost)
    assert host.dtype == getattr(torch, dtype)
    images = host.sample(["moon"], [0], Sampling(steps=2))
    assert images.dtype == torch.float32
    assert (images - host_of("sd").sample(["moon"], [0], Sampling(steps=2))).abs().mean() < 0.1
    assert host.denoise(torch.zeros(1, 4, 8, 8), torch.tensor([500]), host.encode(["moon"])).dtype == torch.float32


def test_half_precision_files(tmp_path: Path) -> None:
    folder = tmp_path / "half"
    host = load(folder_of("sd"), dtype="float16")
    assert isinstance(host, DiffusionHost)
    host.pipeline.save_pretrained(folder, variant="fp16")
    assert (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert load(folder, dtype="float16").fingerprint() == host.fingerprint()
    unet = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(unet, unet.with_name("diffusion_pytorch_model.safetensors"))  # both variants, of one part only
    assert load(folder, dtype="float16").fingerprint() == host.fingerprint()
    unet.unlink()  # a plain part beside halved ones
    assert load(folder, dtype="float16").fingerprint() == host.fingerprint()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_missing_parts_are_named(part: str, tmp_path: Path) -> None:
    folder = copy_of("sd", tmp_path)
    shutil.rmtree(folder / part)
    with pytest.raises(Damaged, match=rf"lacks .*{part}.*fetch the model again"):
        load(folder)


def test_missing_weights(tmp_path: Path) -> None:
    folder = copy_of("sd", tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(Damaged, match="unet has no weights"):
        load(folder)


def test_truncated_weights(tmp_path: Path) -> None:
    folder = copy_of("sd", tmp_path)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Damaged, match="cannot be read as safetensors"):
        load(folder)


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    folder = copy_of("sd", tmp_path)
    shutil.copy(
        folder_of("sdxl") / "unet" / "diffusion_pytorch_model.safetensors",
        folder / "unet" / "diffusion_pytorch_model.safetensors",
    )
    with pytest.raises(Damaged, match=r"unet/config.json does not belong to the weights beside it"):
        load(folder)


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_folders_with_pickled_weights_are_refused_unopened(tmp_path: Path) -> None:
    folder, mark = copy_of("sd", tmp_path), tmp_path / "mark"
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(Damaged, match=r"only as diffusion_pytorch_model\.bin, a pickle"):
        load(folder)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.safetensors"])
def test_pickled_files_are_refused_unopened(name: str, tmp_path: Path) -> None:
    file, mark = tmp_path / name, tmp_path / "mark"
    file.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(Damaged, match="could run code"):
        load(file)
    torch.save({"a": torch.zeros(2)}, file)
    with pytest.raises(Damaged, match="could run code"):
        load(file)
    assert not mark.exists()


def test_files_named_like_pickles_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"whatever it is")
    with pytest.raises(Damaged, match="named like a pickle"):
        load(file)


def test_single_files(tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_down.lora_up.weight": torch.zeros(2, 2)}, lora)
    with pytest.raises(Unsupported, match="A LoRA or a part of a model is not a model"):
        load(lora)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(lora.read_bytes()[:-4])
    with pytest.raises(Damaged, match="truncated or damaged"):
        load(broken)
    with pytest.raises(Unsupported, match=r"no \.safetensors file"):
        load(__file__)


def test_other_pipelines_are_named(tmp_path: Path) -> None:
    folder = copy_of("sd", tmp_path)
    edit_index(folder, lambda index: index.update(_class_name="KandinskyPipeline"))
    with pytest.raises(Unsupported, match="is a 'KandinskyPipeline', which has no host here"):
        load(folder)


def test_a_refiner_is_no_text_to_image_model(tmp_path: Path) -> None:
    folder = copy_of("sdxl", tmp_path)
    edit_index(folder, lambda index: index.update(text_encoder=[None, None], tokenizer=[None, None]))
    with pytest.raises(Unsupported, match="without its text_encoder"):
        load(folder)


def test_code_that_a_model_brings_along_is_never_run(tmp_path: Path) -> None:
    folder, mark = copy_of("sd", tmp_path), tmp_path / "mark"
    (folder / "unet" / "mine.py").write_text(f"open({str(mark)!r}, 'w')\nclass Net: pass\n")
    edit_index(folder, lambda index: index.update(unet=["mine", "Net"]))
    with pytest.raises(Damaged, match=r"comes with its own code \('mine'\), which is never run"):
        load(folder)
    assert not mark.exists()


def test_broken_index(tmp_path: Path) -> None:
    folder = copy_of("sd", tmp_path)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(Damaged, match="not the JSON that it should be"):
        load(folder)
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(Damaged, match="expected a table"):
        load(folder)


def test_places_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="holds neither a diffusers pipeline"):
        load(tmp_path)
    with pytest.raises(Unsupported, match="There is no model at"):
        load(tmp_path / "nowhere")
    with pytest.raises(Unsupported, match=r"never downloaded.*hf download CompVis/stable-diffusion-v1-4"):
        load("CompVis/stable-diffusion-v1-4")
    with pytest.raises(Unsupported, match="no_such_model"):
        load("tiny/no_such_model")


def test_a_model_in_the_local_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "models--someone--theirs" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder_of("sd"), snapshot)
    refs = tmp_path / "cache" / "models--someone--theirs" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    host = load("someone/theirs")
    assert host.name == "someone/theirs"
    assert host.fingerprint() == host_of("sd").fingerprint()


def test_device_and_precision_that_do_not_exist() -> None:
    with pytest.raises(BadRequest, match="no device 'cuda:77'"):
        load(folder_of("sd"), device="cuda:77")
    with pytest.raises(BadRequest, match="no device 'toaster'"):
        load(folder_of("sd"), device="toaster")
    with pytest.raises(BadRequest, match="Unknown precision 'float8'"):
        load(folder_of("sd"), dtype="float8")


def test_the_shipped_tiny_model_loads() -> None:
    if "sd" not in tiny.names():
        pytest.skip("tiny/sd is not shipped yet")
    host = load("tiny/sd")
    assert isinstance(host, DiffusionHost)
    assert host.name == "tiny/sd"
    images = host.sample(["a red star"], [0], Sampling(steps=2))
    assert images.shape == (1, 3, host.default_size, host.default_size)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_weights_that_load_only_in_part_are_refused(family: str, tmp_path: Path) -> None:
    folder = copy_of(family, tmp_path)
    file = next((folder / "text_encoder").glob("*.safetensors"))
    tensors = load_file(str(file))
    lost = next(name for name in tensors if name.endswith("k_proj.weight"))
    del tensors[lost]
    save_file(tensors, str(file), metadata={"format": "pt"})
    with pytest.raises(Damaged, match=r"1 tensors of .*text_encoder.*k_proj\.weight.*fetch the model again"):
        load(folder)


def test_loading_says_nothing() -> None:
    """In a process of its own, since libraries say each thing once."""
    code = f"from palimpsest.hosts.load import load; load({str(folder_of('sd'))!r})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "")
