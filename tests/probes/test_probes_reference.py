"""Networks of one's own beside the judges: distances to a reference folder, CLIP scores, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from evidence_fixtures import Reader, Scribe, patch, request, small_plan
from palimpsest.core.errors import BadRequest, Damaged, Unsupported
from palimpsest.core.fingerprint import fingerprint
from palimpsest.core.patch import Patch
from palimpsest.core.reading import Evaluator, Reading
from palimpsest.data.photos import Photos
from palimpsest.ops.distances import cmmd, frechet
from palimpsest.probes.drawn import Drawn
from palimpsest.probes.evaluators import Judge, judge
from palimpsest.probes.extractors import Extractor, extractor
from palimpsest.probes.groups import Taught
from palimpsest.probes.matching import SCORE, Matching
from palimpsest.probes.plan import Plan
from palimpsest.probes.reference import CMMD, FRECHET, KERNEL, Reference
from palimpsest.probes.verdict import verdict
from palimpsest.receipt import Receipt, audit
from palimpsest.receipt.finding import exit_code
from palimpsest.receipt.subjects.generator import Generator
from palimpsest.receipt.verify import verify
from palimpsest.run.looking import Look, judges, knowing, reference


class Clip(nn.Module):
    """A Matcher: colours and roughness of a picture, and a direction for each colour word."""

    name, knows, scale = "folder/small-clip", None, 10.0
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.root = nn.Linear(3, 1)
        nn.init.zeros_(self.root.weight)
        nn.init.zeros_(self.root.bias)

    def parts(self, role: str) -> dict[str, nn.Module]:
        return {}

    def fingerprint(self) -> str:
        return fingerprint(self.root)

    def embed(self, images: Tensor) -> Tensor:
        small = nn.functional.interpolate(images.float(), (2, 2), mode="area").flatten(1)
        rough = images.diff(dim=3).abs().mean((2, 3))  # what noise has most of
        return nn.functional.normalize(torch.cat([small, 9 * rough], 1), dim=1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        words = {"red": 0, "green": 1, "blue": 2}
        found = torch.full((len(prompts), 3), 0.5)
        for row, prompt in enumerate(prompts):
            for word, channel in words.items():
                found[row, channel] += word in prompt
        return nn.functional.normalize(torch.cat([found.repeat_interleave(4, 1), torch.zeros_like(found)], 1), dim=1)


def extracting() -> Extractor:
    clip = Clip()
    return Extractor(Evaluator(name="small-clip", version="1", sha256="cd" * 32), clip.embed, host=clip)


def folder_of(where: Path, n: int, noise: bool = False) -> Path:
    """Pictures of the untouched stand-in, or noise, as PNG files of several sizes."""
    where.mkdir(parents=True)
    prompts = [f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("moon", "house")] * n
    drawn = Scribe().sample(prompts[:n], list(range(900, 900 + n)))
    if noise:
        drawn = torch.rand(drawn.shape, generator=torch.Generator().manual_seed(0))
    for i, picture in enumerate(drawn):
        image = Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy())
        image.resize((64 + 8 * (i % 3), 64)).save(where / f"{i}.png")
    return where


def audited(tmp_path: Path, change: Patch, photos: Photos) -> Receipt:
    host = Scribe()
    about = Generator(
        plan=small_plan(host, prompts=4, neighbours=1, unrelated=2), judges=[Reader(), extracting()], reference=photos
    )
    asked = request("star", keep=["moon"])
    return audit(host, change, asked, subject=about, out=tmp_path / "out")


def named(found: Receipt, name: str, role: str = "unrelated") -> list[Reading]:
    return [r for r in found.readings if r.name == name and r.role == role]


@pytest.fixture(scope="module")
def ruined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Receipt, Photos]:
    """Every picture is noise after the edit; judged, and held against pictures of the untouched model."""
    folder = tmp_path_factory.mktemp("ruined")
    photos = Photos(folder_of(folder / "photos", 24), size=64, least=8)
    return audited(folder, patch(Scribe(), row=2), photos), photos


def test_ruin_lies_far_from_the_reference_and_from_its_prompts(ruined: tuple[Receipt, Photos]) -> None:
    found, photos = ruined
    clip = extracting().evaluator
    for name in (FRECHET, KERNEL, CMMD):
        (read,) = (r for r in named(found, name) if r.evaluator == clip)
        assert verdict(read) == "changed"
        assert read.change is not None
        assert read.value > (read.before or 0) + read.change.low > (read.before or 0)
        assert read.detail == {"reference": 24, "features": 15}
    assert [r.evaluator for r in named(found, CMMD)] == [clip]  # a reader matches no texts
    (score,) = named(found, SCORE)
    assert verdict(score) == "changed"
    assert not named(found, SCORE, "empty")
    assert {r.evaluator for r in named(found, FRECHET)} == {clip, Reader().evaluator}
    assert any("no full rank" in s["text"] for s in found.data["summary"])
    assert not [r for r in found.readings if r.name == "presence" and r.evaluator == clip]
    assert photos.sha256 in found.html.read_text(encoding="utf-8")  # type: ignore[union-attr]


def test_numbers_are_those_of_the_definitions(ruined: tuple[Receipt, Photos]) -> None:
    found, photos = ruined
    evidence, clip = found.evidence, Clip()
    assert isinstance(evidence, Drawn)
    rows = evidence.plan.rows(role="unrelated")
    shown, theirs = evidence.gallery["after"][rows].float() / 255, torch.cat(list(photos.parts(5))).float() / 255
    by = extracting().evaluator.name
    of = {r.name: r for r in found.readings if r.role == "unrelated" and r.evaluator and r.evaluator.name == by}
    assert of[FRECHET].value == pytest.approx(frechet(clip.embed(shown), clip.embed(theirs)), rel=1e-3)
    assert of[CMMD].value == pytest.approx(cmmd(clip.embed(shown), clip.embed(theirs)), rel=1e-3)
    prompts = [evidence.plan.shots[i].prompt for i in rows.tolist()]
    cosines = (clip.embed(shown) * clip.texts(prompts)).sum(1)
    assert of[SCORE].value == pytest.approx(100 * float(cosines.mean()), abs=2e-3)


def test_what_did_not_move_is_unchanged(ruined: tuple[Receipt, Photos]) -> None:
    evidence = ruined[0].evidence
    assert isinstance(evidence, Drawn)
    still = {k: evidence.measures[k.replace("after/", "before/", 1)] for k in evidence.measures if "/drift" not in k}
    unmoved = replace(evidence, measures=still)
    for read in [*Reference().run(unmoved), *Matching().run(unmoved)]:
        assert verdict(read) == "unchanged", read.name
        assert read.value == read.before


def test_a_receipt_with_a_reference_is_checked_from_itself_and_with_the_folder(
    ruined: tuple[Receipt, Photos], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, photos = ruined
    assert found.json is not None
    host = Scribe()
    own = {k: v for k, v in found.evidence.measures.items() if not k.startswith("reference/")}
    drawn_again = replace(found.evidence, measures=own)  # which other tests draw really
    monkeypatch.setattr("palimpsest.receipt.subjects.generator.collect", lambda *_, **__: drawn_again)

    def check(how: Any, given: Photos | None) -> list[Any]:
        about = Generator(judges=[Reader(), extracting()], reference=given)
        return verify(found.json or "", before=host, remeasure=how, subject=about)

    assert exit_code(check("none", None)) == 0
    whole = check("all", photos)
    assert exit_code(whole) == 0
    assert any(f.what == "reference pictures" for f in whole)
    without = check("all", None)
    assert any("features of the reference" in f.detail for f in without)
    assert exit_code(without) == 3
    wrong = check("all", Photos(folder_of(tmp_path / "others", 24, noise=True), size=64))
    assert exit_code(wrong) == 1
    assert any(f.what == "reference pictures" and not f.ok for f in wrong)


def test_plans_with_a_reference_are_read_back(ruined: tuple[Receipt, Photos]) -> None:
    evidence = ruined[0].evidence
    assert isinstance(evidence, Drawn)
    assert Plan.from_plain(json.loads(json.dumps(evidence.plan.plain()))) == evidence.plan


def test_photos_are_cut_resized_and_read_in_parts(tmp_path: Path) -> None:
    where = folder_of(tmp_path / "deep" / "er", 9)
    photos = Photos(where.parent, size=32)
    assert len(photos) == 9
    assert [tuple(part.shape) for part in photos.parts(4)] == [(4, 3, 32, 32), (4, 3, 32, 32), (1, 3, 32, 32)]
    assert photos.sha256 == Photos(where, size=32).sha256
    with pytest.raises(BadRequest, match="9 pictures; it takes at least 10"):
        Photos(where, size=32, least=10)
    with pytest.raises(BadRequest, match="There are no pictures at"):
        Photos(tmp_path / "nowhere", size=32)
    (where / "5.png").write_bytes((where / "5.png").read_bytes()[:90])
    with pytest.raises(Damaged, match=r"5\.png .*cannot be read"):
        list(Photos(where, size=32).parts())


def test_networks_without_features_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palimpsest.hosts.load.load", lambda name: Scribe())
    with pytest.raises(BadRequest, match="no model at"):
        extractor(str(tmp_path / "nothing"))
    with pytest.raises(Unsupported, match=r"turns no pictures into features .it is: Host"):
        extractor("tiny/sd")


def test_an_oracle_lends_its_features_and_no_classes() -> None:
    found = judge("features:tiny/glyphs")
    assert found.evaluator.name == "features of glyphs oracle"
    assert found.evaluator.classes == ()
    assert found.evaluator.sha256 == judge("tiny/glyphs").evaluator.sha256
    assert found.features(torch.zeros(2, 3, 64, 64)).shape[0] == 2


def test_only_judges_that_were_asked_for_judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = Scribe()
    host.knows = None
    named: list[str] = []

    def give(source: str, concepts: Sequence[Any] = (), host: Any = None) -> Judge:
        named.append(source)
        return extracting() if source.startswith("features:") else Reader()

    monkeypatch.setattr("palimpsest.run.looking.judge", give)
    plan = small_plan(Scribe())
    found = judges(host, plan, Look(judges=("nudenet",), features=("clip",)))
    assert named == ["nudenet", "features:clip"]
    assert knowing(found, plan) == []
    (line,) = knowing(found[1:], plan)
    assert "No judge knows star" in line
    assert "--judge own" in line
    (line,) = knowing(found[1:], replace(plan, newcomers=(Taught(name="star", like="shape"),)))
    assert "--judge own" not in line  # which reads no word that it does not know
    with pytest.raises(BadRequest, match="name one"):
        judges(host, plan, Look(judges=("none",), reference=tmp_path))


def test_a_reference_is_as_large_as_what_is_drawn(tmp_path: Path) -> None:
    host, where = Scribe(), folder_of(tmp_path / "photos", 8)
    plan = small_plan(host)
    with pytest.raises(BadRequest, match="does not say how large"):
        reference(host, plan, Look(reference=where))
    host.default_size = 48  # type: ignore[attr-defined]
    photos = reference(host, plan, Look(reference=where))
    assert photos is not None
    assert photos.size == 48
    assert reference(host, plan, Look()) is None
