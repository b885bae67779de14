"""The shipped models: they load with plain diffusers, fit the size limit, draw what is asked, and are read right."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Generator

from palimpsest import tiny
from palimpsest.core.errors import Unsupported
from palimpsest.tiny.assemble import INT8, ZIP, unpack, unzipped
from palimpsest.tiny.phrases import reopen, reword
from palimpsest_models.masters import Masters, knots, named, ramp
from palimpsest_models.measure import WORLDS, score_words
from palimpsest_models.muon import Muon
from palimpsest_models.pack import pack, zipped
from palimpsest_models.precision import measured
from palimpsest_models.tokenizer import learn_merges, write_tokenizer

PIPELINES = {"sd": "glyphs", "portraits": "faces"}


def _pipeline(name: str):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny.path(name), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_all_weights_together_fit_60_megabytes() -> None:
    seen: dict[int, int] = {}
    for file in tiny.WEIGHTS.rglob("*"):
        if file.is_file():
            seen[file.stat().st_ino] = file.stat().st_size
    assert sum(seen.values()) <= 60e6


@pytest.mark.parametrize("world", ["glyphs", "faces"])
def test_oracle_reads_fresh_drawings(world: str) -> None:
    labels = WORLDS[world].sample(150, generator=Generator().manual_seed(91))
    pictures = WORLDS[world].draw(labels, generator=Generator().manual_seed(92))
    read = tiny.oracle(world).read(pictures.images)
    for key, probabilities in read.items():
        there = pictures.labels[key] >= 0
        right = (probabilities.argmax(1) == pictures.labels[key])[there].float().mean()
        assert right > 0.9, key
        assert torch.all(probabilities >= 0)
        assert torch.all(probabilities.sum(1) <= 1 + 1e-5)


def test_oracle_tells_strangers_apart() -> None:
    faces, reader = WORLDS["faces"], tiny.oracle("faces")
    names = [i for i, name in enumerate(faces.vocabulary["identity"]) if name in faces.held_out["identity"]][:20]
    vectors = []
    for seed in (0, 1):
        generator = Generator().manual_seed(seed)
        labels = {**faces.sample(len(names), generator=generator), "identity": torch.tensor(names)}
        vectors.append(reader.identity(faces.draw(labels, generator=generator).images))
    cosines = vectors[0] @ vectors[1].T
    same, other = cosines.diagonal(), cosines[~torch.eye(len(names), dtype=torch.bool)]
    assert (same[:, None] > other).float().mean() > 0.9


def test_oracle_without_people_refuses_identities() -> None:
    with pytest.raises(ValueError, match="oracle of faces"):
        tiny.oracle("glyphs").identity(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_pipeline_draws_what_is_asked(name: str) -> None:
    world = WORLDS[PIPELINES[name]]
    pipeline = _pipeline(name)
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.float32
    ask = {
        "glyphs": [{"subject": s, "colour": c, "style": "flat"} for s, c in (("star", "red"), ("house", "blue"))] * 4,
        "faces": [{"glasses": g, "style": "flat"} for g in ("sunglasses", "without glasses")] * 4,
    }[world.name]
    prompts = [world.prompt(**words) for words in ask]
    images = pipeline(
        prompts, num_inference_steps=20, guidance_scale=3.0, output_type="pt", generator=Generator().manual_seed(0)
    ).images
    assert images.shape == (8, 3, 64, 64)
    for key, share in score_words(world.name, images, ask).items():
        assert share >= 0.75, key


def test_every_word_of_the_worlds_is_one_token() -> None:
    tokenizer = _pipeline("sd").tokenizer
    for world in WORLDS.values():
        for words in world.vocabulary.values():
            for word in words:
                assert len(tokenizer(word).input_ids) == 2 + len(word.split()), word
    assert tokenizer.decode(tokenizer("xyzzy 123", add_special_tokens=False).input_ids).replace(" ", "") == "xyzzy123"


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(Unsupported, match="installed are "):
        tiny.path("sd-without-everything")
    with pytest.raises(Unsupported, match="glyphs and faces"):
        tiny.oracle("cats")


def test_retrain_oracle_is_unpacked_once_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    folder = tiny.path("sd-without-star")
    made = (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert tiny.path("sd-without-star") == folder
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == made
    unet = _pipeline("sd-without-star").unet.state_dict()
    ours = _pipeline("sd").unet.state_dict()
    assert unet.keys() == ours.keys()
    assert any(not torch.equal(unet[key], ours[key]) for key in ours)
    assert {child.name for child in folder.parent.iterdir()} == {folder.name, tiny.path("sd").name}


@pytest.mark.parametrize("levels", [127, 50])
def test_packed_weights_are_off_by_half_a_step_at_most(tmp_path: Path, levels: int) -> None:
    pack(tiny.path("sd"), tmp_path, levels=levels)
    unzipped(tmp_path / (INT8 + ZIP), tmp_path / INT8)
    unpack(tmp_path / INT8, tmp_path / "unet.safetensors")
    before = load_file(tiny.path("sd") / "unet" / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "unet.safetensors")
    for key, value in before.items():
        if value.dim() < 2:
            assert torch.equal(value, after[key]), key
        else:
            rows, back = value.float().flatten(1), after[key].float().flatten(1)
            step = rows.abs().amax(1, keepdim=True) / levels
            assert torch.all((rows - back).abs() <= 0.51 * step + rows.abs() * 2e-3), key


@pytest.mark.parametrize("size", [0, 1, 2, 1001])
@pytest.mark.parametrize("planes", [1, 2, 12])
def test_zipped_files_come_back_to_the_bit(tmp_path: Path, size: int, planes: int) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(torch.randint(256, (size,), generator=Generator().manual_seed(size)).byte().numpy().tobytes())
    for name in ("a.zip", "b.zip"):
        zipped(file, tmp_path / name, planes=planes)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    unzipped(tmp_path / "a.zip", tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == file.read_bytes()


def test_a_damaged_archive_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tiny, "WEIGHTS", tmp_path)
    (tmp_path / "sd" / "vae").mkdir(parents=True)
    (tmp_path / "sd" / "model_index.json").write_text("{}")
    (tmp_path / "weights.bin").write_bytes(bytes(1000))
    archive = tmp_path / "sd" / "vae" / "weights.bin.zip"
    zipped(tmp_path / "weights.bin", archive, planes=2)
    data = bytearray(archive.read_bytes())
    data[50] ^= 255
    archive.write_bytes(bytes(data))
    with pytest.raises((zipfile.BadZipFile, zlib.error)):
        tiny.path("sd")
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_merges_join_words_and_nothing_else(tmp_path: Path) -> None:
    assert learn_merges(["ab", "abc"]) == [("a", "b"), ("a", "b</w>"), ("ab", "c</w>")]
    write_tokenizer(tmp_path, ["zebra"])
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer("Zebra").input_ids) == 3
    assert len(tokenizer("arbez").input_ids) > 3


def test_rewording_keeps_the_length_and_reopening_keeps_the_caption() -> None:
    generator = Generator().manual_seed(0)
    caption = "a red star in sketch style on a mint background"
    other = reword(caption, generator, rate=1.0)
    assert other != caption
    assert len(other.split()) == len(caption.split())
    assert "mint" in other
    assert reopen(caption, generator).endswith(caption)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to compare with")
@pytest.mark.parametrize("shape", [(6, 4), (4, 9)])
def test_muon_in_bfloat16_is_that_of_torch_and_in_float32_close_to_it(shape: tuple[int, int]) -> None:
    start = torch.randn(shape, generator=Generator().manual_seed(0))
    how = {"lr": 0.1, "weight_decay": 0.01, "momentum": 0.9}
    theirs, mine, exact = (start.clone().requires_grad_(True) for _ in range(3))
    optimisers = [
        torch.optim.Muon([theirs], ns_steps=5, adjust_lr_fn="match_rms_adamw", **how),
        Muon([mine], dtype=torch.bfloat16, **how),
        Muon([exact], dtype=torch.float32, **how),
    ]
    for seed in range(4):
        gradient = torch.randn(shape, generator=Generator().manual_seed(1 + seed))
        for weight, optimiser in zip((theirs, mine, exact), optimisers, strict=True):
            weight.grad = gradient.clone()
            optimiser.step()
    assert torch.equal(mine, theirs)
    assert (mine - start).abs().mean() > 0.03
    assert torch.allclose(mine, exact, atol=0.02)


def test_the_faster_precision_is_chosen() -> None:
    taken = measured()
    assert taken.dtype == (torch.bfloat16 if 1.2 * taken.bfloat16 < taken.float32 else torch.float32)
    assert str(taken).startswith(f"computing in {named(taken.dtype)}: a product takes ")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_interrupted_training_continues_exactly(dtype: torch.dtype) -> None:
    def build() -> tuple[torch.nn.Module, Masters]:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 3))
        return module, Masters(module, lr=1e-2, dtype=dtype)

    def advance(module: torch.nn.Module, masters: Masters, seed: int) -> None:
        x = torch.randn(5, 2, 4, 4, generator=Generator().manual_seed(seed)).to(dtype)
        module(x).float().square().mean().backward()
        masters.step(ramp(seed, knots(6), warmup=2))

    straight, masters = build()
    for seed in range(6):
        advance(straight, masters, seed)
    first, before = build()
    for seed in range(3):
        advance(first, before, seed)
    second, after = build()
    after.restore(before.state())
    for seed in range(3, 6):
        advance(second, after, seed)
    for mine, theirs in zip(masters.masters + masters.averages, after.masters + after.averages, strict=True):
        assert torch.equal(mine, theirs)
