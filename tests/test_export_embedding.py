"""Words as embeddings: diffusers draws the same pictures, other programs' rules hold, and theirs become patches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hosts_fixtures import SIZE, folder_of, host_of, largest, pipeline_of
from palimpsest import cli, run
from palimpsest.core.delta import Dense
from palimpsest.core.errors import BadRequest, Damaged, PalimpsestError, Unsupported, WrongBase
from palimpsest.core.patch import Patch
from palimpsest.core.sampling import Sampling
from palimpsest.core.words import Word
from palimpsest.export import export_patch, export_words, read_patch
from words_fixture import word_for

HOW = Sampling(steps=2, size=SIZE, guidance=4.0)


def patch_of(family: str, k: int = 3, word: str = "<crown>", **more: Any) -> Patch:
    host = host_of(family)
    return Patch(base=host.fingerprint(), words={word: word_for(host, k, **more)})


def drawn(pipeline: Any, prompt: str) -> Tensor:
    return pipeline(
        prompt,
        generator=torch.Generator().manual_seed(3),
        guidance_scale=HOW.guidance,
        num_inference_steps=HOW.steps,
        height=SIZE,
        width=SIZE,
        output_type="pt",
    ).images


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_diffusers_reads_what_is_written_as_the_page_says(family: str, tmp_path: Path) -> None:
    host, patch = host_of(family), patch_of(family)
    (one,) = export_words(patch, tmp_path, host=host)
    assert (one.word, one.vectors, one.path.name) == ("<crown>", 3, "crown.safetensors")
    assert len(one.diffusers) == (1 if family == "sd" else 3)
    import safetensors.torch

    names = {"pipe": pipeline_of(family), "safetensors": safetensors}
    for call in one.diffusers:
        exec(call, names)
    with patch.applied(host):
        found = host.sample(["a red <crown>"], [3], HOW)
    assert largest(found, drawn(names["pipe"], "a red <crown>")) < 1e-5
    assert largest(found, host.sample(["a red <crown>"], [3], HOW)) > 1e-2


def test_the_rules_of_a1111_and_comfyui_hold(tmp_path: Path) -> None:
    """One tensor (k, d), or `clip_l` and `clip_g` of as many rows; the file's name is what prompts say."""
    (one,) = export_words(patch_of("sd"), tmp_path / "sd")
    held = load_file(one.path)
    assert list(held) == ["<crown>"]
    assert held["<crown>"].shape == (3, 16)
    assert held["<crown>"].dtype == torch.float32
    assert one.path.stem == "crown"
    (two,) = export_words(patch_of("sdxl"), tmp_path / "xl", half=True)
    held = load_file(two.path)
    assert {key: (tuple(t.shape), t.dtype) for key, t in held.items()} == dict.fromkeys(
        ("clip_l", "clip_g"), ((3, 16), torch.float16)
    )
    (three,) = export_words(patch_of("flux", clip=True, reads_as="star"), tmp_path / "flux")
    assert list(load_file(three.path)) == ["<crown>"]


@pytest.mark.parametrize("family", ["sd", "sd_v", "sdxl", "sd3", "flux"])
def test_what_is_written_is_read_again(family: str, tmp_path: Path) -> None:
    host, patch = host_of(family), patch_of(family, clip=True, reads_as="crown" if family in ("sd3", "flux") else "")
    (one,) = export_words(patch, tmp_path)
    again = read_patch(one.path, host)
    assert again.base == host.fingerprint()
    assert again.words["<crown>"].same(patch.words["<crown>"])
    with again.applied(host):
        pass


@pytest.mark.parametrize(
    ("family", "tensors", "name", "word"),
    [
        ("sd", {"<cat-toy>": (16,)}, "learned_embeds", "<cat-toy>"),
        ("sd", {"emb_params": (2, 16)}, "my style", "my_style"),
        ("sd", {"string_to_param.*": (2, 16)}, "toy", "toy"),
        ("sd", {"*": (2, 16)}, "toy", "toy"),
        ("sdxl", {"clip_g": (2, 16), "clip_l": (2, 16)}, "toy", "toy"),
        ("sdxl", {"text_encoders_0": (2, 16), "text_encoders_1": (2, 16)}, "toy", "toy"),
        ("flux", {"clip_l": (2, 16)}, "toy", "toy"),
    ],
)
def test_embeddings_of_other_programs_become_patches(
    family: str, tensors: dict[str, tuple[int, ...]], name: str, word: str, tmp_path: Path
) -> None:
    host, g = host_of(family), torch.Generator().manual_seed(0)
    held = {key: torch.randn(shape, generator=g) for key, shape in tensors.items()}
    save_file(held, path := tmp_path / f"{name}.safetensors")
    patch = read_patch(path, host)
    (meant,) = patch.words.values()
    assert list(patch.words) == [word]
    tables = [t for t in host.parts("token_embedding") if t.endswith("token_embedding")]
    for key, vectors in held.items():
        table = tables[0] if len(tables) == 1 or key in ("clip_l", "text_encoders_0") else tables[1]
        assert torch.equal(meant.vectors[table], vectors.reshape(-1, 16))
    with patch.applied(host):
        said = host.encode([f"a {word}"])
    plain = host.encode([f"a {word}"])
    a, b = (cond.states if cond.pooled is None else cond.pooled for cond in (said, plain))
    assert largest(a, b) > 1e-3
    assert run.edited(path, host).sha256() == patch.sha256()
    run.refuse_other(host, path)


@pytest.mark.parametrize(
    ("family", "tensors", "name", "error", "says"),
    [
        ("sd", {"a": torch.ones(1, 9)}, "a", BadRequest, "9 numbers .* another family"),
        ("sdxl", {"clip_l": torch.ones(1, 16)}, "a", BadRequest, "no vectors for text_encoder_2"),
        ("sdxl", {"a": torch.ones(1, 16)}, "a", BadRequest, "another family"),
        ("sd", {"clip_l": torch.ones(1, 16), "clip_g": torch.ones(1, 16)}, "a", BadRequest, "another family"),
        ("sd", {"a": torch.ones(65, 16)}, "a", Damaged, r"\(65, 16\)"),
        ("sd", {"a": torch.ones(0, 16)}, "a", Damaged, r"\(0, 16\)"),
        ("sd", {"a": torch.ones(())}, "a", Damaged, r"\(\)"),
        ("sd", {"a": torch.ones(1, 16, dtype=torch.int64)}, "a", Damaged, "a word has"),
        ("sd", {"a": torch.full((1, 16), torch.nan)}, "a", Damaged, "not finite"),
        ("sd", {"a b": torch.ones(1, 16)}, "a", Damaged, "no spaces"),
        ("sd", {"*": torch.ones(1, 16)}, "'", Damaged, "quotes"),
        ("sd", {"x.weight": torch.ones(1), "y.weight": torch.ones(1)}, "a", Damaged, "not a palimpsest patch"),
    ],
)
def test_what_is_no_embedding_of_this_model_is_refused(
    family: str, tensors: dict[str, Tensor], name: str, error: type[Exception], says: str, tmp_path: Path
) -> None:
    save_file(tensors, path := tmp_path / f"{name}.safetensors")
    with pytest.raises(error, match=says):
        read_patch(path, host_of(family))


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.safetensors"])
def test_pickled_embeddings_are_refused_unopened(name: str, tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": torch.ones(1, 16)}}, path := tmp_path / name)
    with pytest.raises(Damaged, match="pickle"):
        read_patch(path, host_of("sd"))
    with pytest.raises(PalimpsestError, match="pickle"):
        run.refuse_other(host_of("sd"), path)


def test_what_other_programs_cannot_read_is_not_written(tmp_path: Path) -> None:
    sd, xl = patch_of("sd"), patch_of("sdxl")
    (word,) = xl.words.values()
    (short, long) = word.vectors
    uneven = replace(word, vectors={short: word.vectors[short][:1], long: word.vectors[long]})
    twice = {"<crown>": sd.words["<crown>"], "crown": sd.words["<crown>"]}
    big = Word(vectors={table: v * 1e6 for table, v in sd.words["<crown>"].vectors.items()})
    for patch, error, says in [
        (Patch(base=sd.base), BadRequest, "brings no word"),
        (replace(xl, words={"<a>": uneven}), Unsupported, "more vectors for one"),
        (patch_of("sd3", reads_as="star"), Unsupported, "text_encoder_3"),
        (replace(sd, words=twice), BadRequest, "both be called crown.safetensors"),
    ]:
        with pytest.raises(error, match=says):
            export_words(patch, tmp_path)
    with pytest.raises(Unsupported, match="not finite"):
        export_words(replace(sd, words={"<a>": big}), tmp_path, half=True)
    with pytest.raises(WrongBase):
        export_words(sd, tmp_path, host=host_of("sd_v"))
    with pytest.raises(BadRequest, match="words alone"):
        export_patch(sd, host_of("sd"), "peft", tmp_path / "lora")
    assert list(tmp_path.iterdir()) == []
    (odd,) = export_words(replace(sd, words={"../<a>/b": sd.words["<crown>"]}), tmp_path)
    assert odd.path == tmp_path / "_a_b.safetensors"


def test_the_commands_draw_and_export_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host, patch, model = host_of("sd"), patch_of("sd"), str(folder_of("sd"))
    name = next(n for n, p in host.root.named_parameters() if n.endswith("to_k.weight"))
    both = replace(patch, deltas={name: Dense(value=torch.ones(host.root.get_parameter(name).shape))})
    file = str(both.save(tmp_path / "p.safetensors"))
    assert cli.main(["export", "--patch", file, "--format", "embedding", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "3 vectors" in said
    assert "load_textual_inversion" in said
    assert "changes weights, too" in said
    assert cli.main(["export", "--patch", file, "--out", str(tmp_path / "lora"), "--model", model]) == 0
    assert "<crown> are no part of it" in capsys.readouterr().out
    drawn = {}
    for which, given in {"patch": patch.save(tmp_path / "w"), "file": tmp_path / "out" / "crown.safetensors"}.items():
        out = tmp_path / f"{which}.png"
        command = [
            "sample",
            "a red <crown>",
            "--model",
            model,
            "--patch",
            str(given),
            "--steps",
            "1",
            "--out",
            str(out),
        ]
        assert cli.main(command) == 0
        drawn[which] = out.read_bytes()
    assert drawn["patch"] == drawn["file"]
    run.sample(host, "a red <crown>", out=tmp_path / "plain.png", steps=1)
    assert drawn["patch"] != (tmp_path / "plain.png").read_bytes()
