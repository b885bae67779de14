"""What a model takes in memory is known from its files' headers; what cannot fit is refused before loading."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hosts_fixtures import BUILDERS, folder_of
from palimpsest import machine
from palimpsest.core.errors import Damaged, TooLarge
from palimpsest.core.fingerprint import tensors_of
from palimpsest.hosts.load import DTYPES, held, load
from palimpsest.hosts.weights import refuse_odd


def bytes_of(host: Any) -> int:
    once = {t.data_ptr(): t for t in tensors_of(host.root).values()}
    return sum(t.numel() * t.element_size() for t in once.values())


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_headers_tell_what_loading_takes(family: str, dtype: str) -> None:
    host, told = load(folder_of(family), dtype=dtype), held(folder_of(family), dtype=dtype)
    assert told.all == pytest.approx(bytes_of(host), rel=0.01)
    assert told.parameters == pytest.approx(told.all / DTYPES[dtype].itemsize, rel=0.01)
    # The files hold float32: as that they are mapped, and in another precision this process has a copy of its own.
    assert (told.mapped, told.private)[dtype == "float32"] == pytest.approx(0, abs=0.01 * told.all)


def test_a_device_holds_copies_of_its_own() -> None:
    told = held(folder_of("sd"), device="meta")
    assert told.mapped == 0
    assert told.private == held(folder_of("sd")).all


def test_of_several_variants_the_plain_one_counts(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("sd"), tmp_path / "sd"))
    unet = folder / "unet"
    shutil.copy(unet / "diffusion_pytorch_model.safetensors", unet / "diffusion_pytorch_model.non_ema.safetensors")
    assert held(folder) == held(folder_of("sd"))


def test_a_model_that_does_not_fit_is_refused_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("sdxl")
    whole, half = held(folder).all, held(folder, dtype="bfloat16").all
    monkeypatch.setattr("palimpsest.hosts.weights.loaded", None)  # loading would fail otherwise
    monkeypatch.setattr(machine, "available", lambda device: (whole + half) // 2)
    with pytest.raises(TooLarge, match=r"float32 \(unet .* are free on cpu; nothing was loaded.*--dtype bfloat16"):
        load(folder)
    monkeypatch.setattr(machine, "available", lambda device: half - 1)
    with pytest.raises(TooLarge, match=r"in bfloat16.*larger machine"):
        load(folder, dtype="bfloat16")


def test_nothing_is_refused_where_nobody_knows_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available", lambda device: None)
    assert load(folder_of("sd")).device.type == "cpu"


def test_damage_is_told_before_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(folder_of("sd"), tmp_path / "sd"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    monkeypatch.setattr(machine, "available", lambda device: 0)
    with pytest.raises(Damaged, match="unet"):
        load(folder)


def test_a_container_leaves_what_its_limit_does(tmp_path: Path) -> None:
    assert machine._left_of_container(tmp_path) == []
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 300\nactive_file 200\ninactive_file 100\n")
    assert machine._left_of_container(tmp_path) == []
    (tmp_path / "memory.max").write_text("1000\n")
    assert machine._left_of_container(tmp_path) == [700]  # pages of files are given back
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory.stat").rename(tmp_path / "memory" / "memory.stat")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("600\n")
    assert machine._left_of_container(tmp_path) == [1700]


def test_free_memory_is_a_number_of_bytes() -> None:
    free = machine.available()
    assert free is not None
    assert 2**20 < free < 2**50
    assert (machine.amount(13.1 * 2**30), machine.amount(340 * 2**20)) == ("13.1 GiB", "340 MiB")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_one_odd_number_is_found_wherever_it_stands(dtype: torch.dtype, odd: float) -> None:
    for place in (0, 500, 1022):
        root = torch.nn.Linear(1023, 1, bias=False).to(dtype)
        refuse_odd(root, "it")
        root.weight.data[0, place] = odd
        with pytest.raises(Damaged, match="not finite"):
            refuse_odd(root, "it")


def test_files_are_read_by_their_own_types(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.int64)}, tmp_path / "model.safetensors")
    told = held(tmp_path / "model.safetensors")
    assert (told.parameters, told.mapped, told.private) == (17, 48, 40)
