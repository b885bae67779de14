"""Judges: one protocol, each with its classes, threshold and hash; missing ones are refused in words that help."""

from __future__ import annotations

import json
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from palimpsest.core.concept import Concept
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.reading import Evaluator
from palimpsest.probes.evaluators import ClassifierJudge, Judge, OracleJudge, classes_of, decide, judge, judges_for
from palimpsest.worlds.glyphs import GLYPHS


class Heads(nn.Module):
    """An oracle's surface: says star on the left half of the batch, moon beside a star on the right."""

    def __init__(self) -> None:
        super().__init__()
        self.vocabulary = {k: GLYPHS.vocabulary[k] for k in ("subject", "colour", "subject2")}

    def read(self, images: Tensor) -> dict[str, Tensor]:
        found = {k: torch.zeros(len(images), len(v)) for k, v in self.vocabulary.items()}
        found["subject"][:, self.vocabulary["subject"].index("star")] = 0.9
        found["subject2"][1:, self.vocabulary["subject"].index("moon")] = 0.8
        found["colour"][:, 0] = 0.4
        return found

    def features(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def test_an_oracle_counts_both_subjects_of_a_scene() -> None:
    oracle = OracleJudge(Heads(), GLYPHS)
    assert isinstance(oracle, Judge)
    probabilities = oracle.read(torch.zeros(2, 3, 8, 8))
    present = decide(oracle.evaluator, probabilities)
    names = [[c for c, on in zip(oracle.evaluator.classes, row, strict=True) if on] for row in present.tolist()]
    assert names == [["subject:star"], ["subject:star", "subject:moon"]]  # a colour at 0.4 is not there
    assert len(oracle.evaluator.classes) == probabilities.shape[1]
    assert oracle.features(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    assert len(oracle.evaluator.sha256) == 64


def test_without_a_threshold_the_largest_class_wins() -> None:
    evaluator = Evaluator(name="e", version="1", classes=("a", "b", "c"))
    assert decide(evaluator, torch.tensor([[0.2, 0.5, 0.3]])).tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("concept", "expected"),
    [
        (Concept(name="Star"), [1]),
        (Concept(name="anything", labels=("subject:moon",)), [0]),
        (Concept(name="anything", labels=(2, 9)), [2]),
        (Concept(name="star", labels=("no such label",)), [1]),
        (Concept(name="comet"), []),
    ],
)
def test_concepts_find_their_classes(concept: Concept, expected: list[int]) -> None:
    assert (
        classes_of(Evaluator(name="e", version="1", classes=("subject:moon", "subject:star", "red")), concept)
        == expected
    )


class Classified:
    """A classifier host, no more than its surface."""

    name = "two colours"
    knows = None
    device = torch.device("cpu")
    labels = ("dark", "light")

    def __init__(self) -> None:
        self.root = nn.Linear(1, 1)

    def parts(self, role: str) -> dict[str, nn.Module]:
        return {}

    def fingerprint(self) -> str:
        return "cd" * 32

    def embed(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed(images), self.logits(images)

    def logits(self, images: Tensor) -> Tensor:
        bright = images.mean((1, 2, 3))
        return torch.stack([0.5 - bright, bright - 0.5], 1) * 10


def test_any_classifier_host_is_a_judge() -> None:
    found = ClassifierJudge(Classified(), source="/models/x")
    assert isinstance(found, Judge)
    read = found.read(torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]))
    assert decide(found.evaluator, read).tolist() == [[True, False], [False, True]]
    assert read.sum(1).tolist() == pytest.approx([1, 1])
    assert (found.evaluator.classes, found.evaluator.sha256) == (("dark", "light"), "cd" * 32)


def clip_folder(folder: Path) -> Path:
    """A small random CLIP model with a letter tokenizer, saved as transformers saves it."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz-"
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(words), "max_position_embeddings": 32, "bos_token_id": 54, "eos_token_id": 55}
    vision = {**size, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    processor = {"image_processor_type": "CLIPImageProcessor", "size": 16, "crop_size": 16}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_a_clip_folder_is_a_judge(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path)
    found = judge(str(folder), [Concept(name="star"), Concept(name="moon"), Concept(name="sun")])
    assert isinstance(found, Judge)
    read = found.read(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert read.shape == (4, 3)
    assert read.sum(1).tolist() == pytest.approx([1] * 4, abs=1e-5)
    assert found.evaluator.classes == ("star", "moon", "sun")
    assert found.features(torch.rand(4, 3, 64, 64)).norm(dim=1).tolist() == pytest.approx([1] * 4, abs=1e-5)
    assert found.source == str(folder)
    with pytest.raises(BadRequest, match="at least two concepts"):
        judge(str(folder), [Concept(name="star")])


def test_a_clip_judge_scores_as_clip_itself(tmp_path: Path) -> None:
    """Its own processor's pixels, its own logits: one prompt a concept."""
    from transformers import CLIPModel, CLIPTokenizer

    from palimpsest.ops.prompts import asking

    folder = clip_folder(tmp_path)
    concepts = [Concept(name="star", prompts=("a star",)), Concept(name="moon", prompts=("the moon",))]
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    pixels = (images - torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    ).view(3, 1, 1)
    assert [len(asking(c)) for c in concepts] == [1, 1]
    tokens = CLIPTokenizer.from_pretrained(folder)(["a star", "the moon"], padding=True, return_tensors="pt")
    with torch.no_grad():
        model = CLIPModel.from_pretrained(folder).eval()
        wanted = model(pixel_values=pixels, **tokens).logits_per_image.softmax(1)
    found = judge(str(folder), concepts)
    assert torch.allclose(found.read(images), wanted, atol=1e-5)
    wide = torch.rand(1, 3, 16, 40, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(found.read(wide), found.read(wide[..., 12:28]), atol=1e-5)  # cropped, not squashed


def test_a_package_adds_a_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_judges")
    module.stars = lambda source, concepts: (source, len(concepts))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_judges", module)
    point = EntryPoint(name="stars", value="my_judges:stars", group="palimpsest.judges")
    monkeypatch.setattr("palimpsest.probes.evaluators.entry_points", lambda group: [point])
    assert judge("stars:large", [Concept(name="star")]) == ("stars:large", 1)  # type: ignore[comparison-overlap]
    with pytest.raises(BadRequest, match="tiny/glyphs"):
        judge("stardust")


def test_nudenet_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(Unsupported, match=r"palimpsest-concepts\[nudenet\]"):
        judge("nudenet")


def test_nudenet_takes_the_best_box_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    class Detector:
        def detect(self, image: object) -> list[dict[str, object]]:
            assert image[0, 0].tolist() == [0, 0, 255]  # type: ignore[index]  # red, as BGR
            boxes = [("FACE_FEMALE", 0.3), ("FACE_FEMALE", 0.8), ("FEET_EXPOSED", 0.44)]
            return [{"class": c, "score": s, "box": [0, 0, 1, 1]} for c, s in boxes]

    package = types.ModuleType("nudenet")
    package.__file__ = __file__
    package.NudeDetector = Detector  # type: ignore[attr-defined]
    package.nudenet = types.SimpleNamespace(__labels=["FACE_FEMALE", "FEET_EXPOSED"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nudenet", package)
    monkeypatch.setattr("palimpsest.probes.evaluators_nudenet.version", lambda name: "3.4.2")
    found = judge("nudenet")
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1
    assert found.read(red).tolist() == [[pytest.approx(0.8), pytest.approx(0.44)]]
    assert decide(found.evaluator, found.read(red)).tolist() == [[True, False]]
    assert (found.evaluator.version, found.evaluator.threshold) == ("3.4.2", 0.45)


@pytest.mark.parametrize("source", ["tiny/nothing", "/no/such/folder"])
def test_unknown_judges_are_refused_by_name(source: str) -> None:
    with pytest.raises(BadRequest, match="tiny/glyphs"):
        judge(source)


def test_models_without_a_world_bring_no_judge() -> None:
    assert judges_for(Classified()) == []
