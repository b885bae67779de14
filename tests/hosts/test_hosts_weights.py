"""Every tensor of a model comes from its files: what they lack is refused, prefixes that hide it all are taken off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hosts_fixtures import folder_of, host_of
from palimpsest.core.errors import Damaged
from palimpsest.core.fingerprint import fingerprint
from palimpsest.hosts import weights
from palimpsest.hosts.load import load
from palimpsest.hosts.weights import unprefixed

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def rewrite(file: Path, change: Change) -> None:
    save_file(change(load_file(str(file))), str(file), metadata={"format": "pt"})


def weights_of(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def without(end: str) -> Change:
    """Drops the last tensor whose name ends so."""

    def change(state: dict[str, Tensor]) -> dict[str, Tensor]:
        lost = max(key for key in state if key.endswith(end) and not key.startswith("shared"))
        return {key: value for key, value in state.items() if key != lost}

    return change


def prefixed(prefix: str) -> Change:
    return lambda state: {prefix + key: value for key, value in state.items()}


@pytest.fixture(params=["with accelerate", "without accelerate"])
def accelerate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.models import modeling_utils

    if request.param == "without accelerate":
        monkeypatch.setattr(modeling_utils, "is_accelerate_available", lambda: False)
        monkeypatch.setattr(modeling_utils, "_LOW_CPU_MEM_USAGE_DEFAULT", False)


PARTS = [
    ("sd", "unet"),
    ("sd", "vae"),
    ("sd", "text_encoder"),
    ("sdxl", "text_encoder_2"),
    ("sd3", "transformer"),
    ("sd3", "text_encoder_3"),
    ("flux", "transformer"),
]


@pytest.mark.usefixtures("accelerate")
@pytest.mark.parametrize(("family", "part"), PARTS)
def test_a_part_that_lacks_a_tensor_is_refused(family: str, part: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of(family), tmp_path / "m"))
    rewrite(weights_of(folder / part), without(".weight"))
    with pytest.raises(Damaged, match=rf"1 tensors of .*{part} are not in its files.*fetch the model again"):
        load(folder)


@pytest.mark.usefixtures("accelerate")
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
@pytest.mark.parametrize(("family", "part"), PARTS[:3])
def test_prefixes_of_wrappers_are_taken_off(family: str, part: str, prefix: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of(family), tmp_path / "m"))
    rewrite(weights_of(folder / part), prefixed(prefix))
    assert load(folder).fingerprint() == host_of(family).fingerprint()


def test_prefixes_are_taken_off_only_where_every_name_has_them() -> None:
    assert unprefixed(["module.a", "module.b.c"]) == {"module.a": "a", "module.b.c": "b.c"}
    assert unprefixed(["module.a", "b.c"]) == {"module.a": "module.a", "b.c": "b.c"}
    assert unprefixed(["net._orig_mod.a"]) == {"net._orig_mod.a": "net.a"}


def test_a_model_saved_with_a_lora_still_loaded_is_told_so(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("sd"), tmp_path / "m"))

    def with_lora(state: dict[str, Tensor]) -> dict[str, Tensor]:
        key = next(key for key in state if key.endswith("to_k.weight"))
        stem = key.removesuffix(".weight")
        state[f"{stem}.base_layer.weight"] = state.pop(key)
        return state | {f"{stem}.lora_A.default.weight": torch.zeros(2, 2)}

    rewrite(weights_of(folder / "unet"), with_lora)
    with pytest.raises(Damaged, match=r"adapter \(LoRA\) still loaded.*Fuse or unload"):
        load(folder)


def test_a_whole_variant_hides_no_broken_plain_one(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("sd"), tmp_path / "m"))
    for part in ("unet", "text_encoder"):
        file = weights_of(folder / part)
        whole = file.with_name(file.name.replace(".safetensors", ".fp16.safetensors"))
        shutil.copy(file, whole)
        rewrite(file, without(".weight"))
        with pytest.raises(Damaged, match=f"{part} are not in its files"):
            load(folder)
        shutil.copy(whole, file)
    assert load(folder).fingerprint() == host_of("sd").fingerprint()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_before_anything_is_drawn(value: float, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("sd"), tmp_path / "m"))

    def spoilt(state: dict[str, Tensor]) -> dict[str, Tensor]:
        next(iter(state.values())).view(-1)[-1] = value
        return state

    rewrite(weights_of(folder / "unet"), spoilt)
    with pytest.raises(Damaged, match=r"1 tensors of .* not finite, first 'unet"):
        load(folder)


# -- fingerprints that are kept ------------------------------------------------------------------------


def test_a_large_models_fingerprint_is_hashed_once_for_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "LARGE", 1)
    hashed: list[str] = []
    monkeypatch.setattr(weights, "fingerprint", lambda root: hashed.append("once") or fingerprint(root))
    file = tmp_path / "model.safetensors"
    net = torch.nn.Linear(3, 2)
    save_file({k: t.contiguous() for k, t in net.state_dict().items()}, str(file))

    def read_again() -> weights.Weights:
        model = torch.nn.Linear(3, 2)
        model.load_state_dict(load_file(str(file)))
        found = weights.Weights(model)
        found.come_from([file])
        return found

    whole = fingerprint(net)
    assert (read_again().fingerprint(), len(hashed)) == (whole, 1)
    assert (read_again().fingerprint(), len(hashed)) == (whole, 1)  # kept by path, size and time
    changed = read_again()
    changed._root.bias.data[0] += 1e-6
    assert changed.fingerprint() != whole  # what is in memory decides, whatever the files were
    assert len(hashed) == 2
    os.utime(file, ns=(1, 1))
    assert (read_again().fingerprint(), len(hashed)) == (whole, 3)
    for kept in (tmp_path / "cache" / "fingerprints").iterdir():
        kept.write_text("not a hash")
    assert (read_again().fingerprint(), len(hashed)) == (whole, 4)
