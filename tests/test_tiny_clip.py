"""The image-text model of the worlds: captions and their marks, what is true of what, the step, and the folder."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Generator
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from palimpsest import tiny
from palimpsest.core.host import Matcher
from palimpsest.hosts.load import load
from palimpsest.probes.evaluators import MatcherJudge
from palimpsest.worlds.concepts import concept
from palimpsest_models import clip_batches, measure_clip, pool, train_clip
from palimpsest_models.captions import (
    KEYS,
    VOCABULARY,
    Caption,
    claims,
    exchanged,
    lengthened,
    marked,
    reworded,
    table,
    true_of,
    varied,
    write,
)
from palimpsest_models.clip_batches import Data
from palimpsest_models.clip_tokens import Encoder, lay_out
from palimpsest_models.everyday import EVERYDAY, FRESH
from palimpsest_models.pool import WORLDS
from palimpsest_models.train_clip import Trainer, contrast, make_model
from palimpsest_models.train_text import world_words

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return train_clip.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def trainer(tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    monkeypatch.setattr(train_clip, "TEXT", SMALL)
    monkeypatch.setattr(train_clip, "IMAGE", SMALL)
    torch.manual_seed(0)
    return Trainer(make_model(tokenizer), Encoder(tokenizer), lr=2e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    few = Data(tmp_path_factory.mktemp("pictures"), chunks={"glyphs": 1, "pairs": 1, "faces": 1})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pool, "CHUNK", 40)
        patched.setattr(clip_batches, "CHUNK", 40)
        few.grow(0)
    return few


def written(world: str, n: int, seed: int = 0) -> tuple[list[Caption], torch.Tensor]:
    generator = Generator().manual_seed(seed)
    labels = WORLDS[world].sample(n, generator=generator, held_out=True)
    labels = WORLDS[world].draw(labels, generator=generator, captions=[""] * n).labels
    return write(world, labels, generator=generator, chooser=random.Random(seed)), table(world, labels)


def test_words_are_whole_tokens_and_all_else_falls_to_pieces(tokenizer: CLIPTokenizer) -> None:
    for word in sorted(world_words() | set(EVERYDAY)):
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word
    for word in (*FRESH, "Øresund", "猫", "🙂"):
        ids = tokenizer(word, add_special_tokens=False).input_ids
        assert len(ids) > 1, word
        assert str(tokenizer.decode(ids)).strip() == word.lower()
    assert tokenizer.model_max_length == 77
    assert not (set(EVERYDAY) | {word.lower() for word in FRESH}) & world_words()
    assert not set(EVERYDAY) & {word.lower() for word in FRESH}
    text = "a red star, in van gogh style; on 2 bicycles"
    ids = tokenizer(text).input_ids
    assert str(tokenizer.decode(ids, skip_special_tokens=True)).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("world", ["glyphs", "faces"])
def test_captions_are_true_of_their_pictures_in_every_variation(world: str, tokenizer: CLIPTokenizer) -> None:
    captions, labels = written(world, 300)
    chooser = random.Random(1)
    encode = Encoder(tokenizer)
    for forms in (captions, [varied(c, chooser) for c in captions]):
        assert true_of(labels, claims(forms)).diagonal().all()
        for caption in forms:
            assert encode(caption)[0] == tokenizer(caption.text, truncation=True, max_length=77).input_ids
    assert len({c.text for c in captions}) > 240
    assert 0.05 < true_of(labels, claims(captions)).float().mean() < 0.25
    said = [c.said for c in captions]
    key = "subject" if world == "glyphs" else "style"
    assert 0.35 < sum(key in words for words in said) / len(said) < 0.75


def test_marks_say_what_each_word_says() -> None:
    caption = marked("a blue circle to the right of a red star in sketch style", "glyphs")
    kinds = {word: mark[0] for word, mark in zip(caption.words, caption.marks, strict=True) if mark is not None}
    assert kinds == {"blue": "colour", "circle": "subject", "of": "relation", "red": "colour2", "star": "subject2",
                     "sketch": "style"}  # fmt: skip
    # The star stands left of the circle, so it is the picture's first subject.
    same = marked("a red star left of a blue circle in sketch style", "glyphs")
    assert torch.equal(claims([caption]), claims([same]))
    other = reworded(same, random.Random(0), rate=1.0)
    assert other.marks == same.marks
    assert other.words != same.words
    assert len(lengthened(same, 40, random.Random(0)).words) >= 40
    assert lengthened(same, 40, random.Random(0)).said == same.said
    assert marked("a picture in neon style", "glyphs").world == ""
    assert marked("Ada, without glasses", "faces").said.keys() == {"identity", "glasses"}


def test_exchanged_colours_are_untrue() -> None:
    generator = Generator().manual_seed(0)
    labels = WORLDS["glyphs"].sample(600, generator=generator)
    two = labels["relation"] >= 0
    labels = {key: value[two] for key, value in labels.items()}
    captions = write("glyphs", labels, generator=generator, chooser=random.Random(0))
    rows = table("glyphs", labels)
    foils = [(i, exchanged(c, keys)) for i, c in enumerate(captions) for keys in (("colour",), ("subject",))]
    there = [(i, foil) for i, foil in foils if foil is not None]
    assert len(there) > 40
    true = true_of(rows, claims([foil for _, foil in there]))
    assert not any(true[i, column] for column, (i, _) in enumerate(there))
    assert exchanged(marked("a red star", "glyphs"), ("colour",)) is None


def test_tokens_are_read_for_what_was_said_before_them(tokenizer: CLIPTokenizer) -> None:
    caption = marked("a red star left of a blue circle", "glyphs")
    (group,) = lay_out([caption], Encoder(tokenizer))
    colours = [VOCABULARY["colour"].index(c) for c in ("red", "blue")]
    column = KEYS.index("colour2")
    none = len(VOCABULARY["colour"])
    assert group.prefix[0, :, column].tolist() == [none] * 7 + [colours[1]] * (group.ids.shape[1] - 7)
    subjects = group.mate[group.mate[:, 2] == 0]
    assert subjects[:, 3].tolist() == colours
    assert group.mate[group.mate[:, 2] == 1][:, 3].tolist() == [len(VOCABULARY["subject"])] * 2


def test_contrast_holds_nothing_true_against_a_pair() -> None:
    logits = torch.randn(5, 7, generator=Generator().manual_seed(0))
    true = torch.rand(5, 7, generator=Generator().manual_seed(1)) < 0.4
    true[0] = True  # nothing is untrue of it: no loss
    expected = []
    for s, t in ((logits, true), (logits.T, true.T)):
        rows = []
        for i in range(len(s)):
            false = s[i][~t[i]].exp().sum()
            if t[i].any() and (~t[i]).any():
                rows.append(torch.stack([-(v.exp() / (v.exp() + false)).log() for v in s[i][t[i]]]).mean())
        expected.append(torch.stack(rows).mean())
    assert torch.allclose(contrast(logits, true), torch.stack(expected).mean(), atol=1e-6)


def test_a_run_that_was_stopped_goes_on_to_the_bit(trainer: Trainer, data: Data, tmp_path: Path) -> None:
    def step(number: int) -> dict[str, float]:
        return trainer.step(data.batch(number, pictures=12, captions=8, seed=0), 1.0)

    step(0)
    train_clip.save_checkpoint(tmp_path / "c.safetensors", trainer)
    first = step(1)
    kept = trainer.masters.state()
    kept = {key: value.clone() for key, value in kept.items()}
    trainer.masters.restore(train_clip.load_file(str(tmp_path / "c.safetensors")))
    assert step(1) == first
    assert all(torch.equal(value, kept[key]) for key, value in trainer.masters.state().items())
    assert set(first) == {"prefix", "own", "mate", "alike", "contrast", "words", "picture"}


def test_a_step_lowers_every_loss_of_its_batch(trainer: Trainer, data: Data) -> None:
    batch = data.batch(3, pictures=24, captions=16, seed=0)
    before = trainer.step(batch, 1.0)
    for _ in range(12):
        after = trainer.step(batch, 1.0)
    for name in ("prefix", "own", "mate", "contrast", "picture"):
        assert after[name] < before[name], name


def test_the_folder_loads_as_a_matcher_and_as_towers(
    trainer: Trainer, tokenizer: CLIPTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_clip.export(trainer, tokenizer, tmp_path / "model")
    host = load(tmp_path / "model")
    assert host.size == (64, 64)
    assert isinstance(host, Matcher)
    images, _ = measure_clip.fresh_pictures("glyphs", 12)
    assert host.embed(images).shape == (12, train_clip.PROJECTION)
    judge = MatcherJudge(host, [concept(WORLDS["glyphs"], word) for word in ("star", "moon", "key")])
    assert torch.allclose(judge.read(images).sum(1), torch.ones(12), atol=1e-5)
    whole = CLIPModel.from_pretrained(tmp_path / "model").float()
    pixels = (images - 0.5) / 0.5
    vision = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "model").float()
    unit = torch.nn.functional.normalize(vision(pixels).image_embeds, dim=1)
    assert torch.allclose(unit, host.embed(images), atol=1e-4)
    text = CLIPTextModel.from_pretrained(tmp_path / "model").float()
    ids = tokenizer(["a red star"], padding="max_length", return_tensors="pt").input_ids
    assert ids.shape == (1, 77)
    assert torch.allclose(text(ids).last_hidden_state, whole.text_model(ids).last_hidden_state, atol=1e-5)
    scores = measure_clip.measure(host, n=24)
    assert {f"{world}: {key}" for world, keys in measure_clip.KEYS.items() for key in keys} < set(scores)
    assert all(0 <= value <= 1 for part in scores.values() for value in part.values())
    train_clip.ship(tmp_path / "model", tmp_path / "weights" / "clip")
    assert not list((tmp_path / "weights" / "clip").glob("*.safetensors"))
    monkeypatch.setattr(tiny, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    assert load("tiny/clip").fingerprint() == host.fingerprint()
