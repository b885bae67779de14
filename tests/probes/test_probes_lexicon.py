"""A model's own words: read once, kept by the encoder's hash, near by text states, of the kind asked for."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from hosts_fixtures import fresh_host, host_of
from palimpsest.core.concept import Concept, Kind
from palimpsest.core.errors import BadRequest
from palimpsest.hosts.sd import SDHost
from palimpsest.ops.listed import LISTS, OTHER, common, list_of, of_kind, same
from palimpsest.ops.prompts import SETTINGS, holds, in_settings
from palimpsest.probes import lexicon
from palimpsest.probes.lexicon import Lexicon, vocabulary
from palimpsest.probes.plan import plan
from palimpsest.run import concepts, request, told
from palimpsest.worlds.concepts import Words
from palimpsest.worlds.glyphs import GLYPHS

FAMILIES = ("sd", "sdxl", "sd3", "flux")
NOBODY = frozenset[str]()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    lexicon._read.clear()
    return tmp_path


class Geometry:
    """A reader whose states say what is told: each list's names lie around an axis of their own, in fixed places.

    `near` gives further words: (a listed name to lie by, how far from it).
    """

    sha256 = "00"

    def __init__(self, near: dict[str, tuple[str, float]]) -> None:
        self.near, self.words, self.texts = near, tuple(sorted(near)), 0
        self.axes = {found.name: i for i, found in enumerate((*LISTS, OTHER))}

    def read(
        self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.texts += len(texts)
        if progress is not None:
            progress(len(texts), len(texts))
        return torch.stack([self._state(t) for t in texts]), torch.tensor([len(t.split()) for t in texts])

    def _state(self, text: str) -> torch.Tensor:
        if text in self.near:
            name, far = self.near[text]
            return self._state(name) + far * _drawn(text)
        found = next(w for w in (*LISTS, OTHER) if text in w.names) if text in _EVERY else list_of(text)
        assert found is not None
        axis = torch.zeros(64)
        axis[self.axes[found.name]] = 1.5
        return axis + _drawn(text) + len(text.split())  # what all texts of a length share

    def host(self) -> Any:
        return SimpleNamespace(name="made up", reader=self, knows=None)


_EVERY = {n for found in (*LISTS, OTHER) for n in found.names}


def _drawn(text: str) -> torch.Tensor:
    return torch.randn(64, generator=torch.Generator().manual_seed(zlib.crc32(text.encode()))) / 8


@pytest.mark.parametrize("family", FAMILIES)
def test_a_request_keeps_the_models_nearest_words_by_itself(family: str, cache: Path) -> None:
    host = fresh_host(family)
    asked = request(host, "golf ball")
    names = [c.name for c in asked.keep]
    assert len(set(names)) == len(names) >= 6
    assert all((found := list_of(n)) is not None and found.kind == "object" for n in names)
    assert not any(same(n, "golf ball") for n in names)
    (file,) = (cache / "words").iterdir()
    written = file.stat().st_mtime_ns
    lexicon._read.clear()
    calls = 0
    read = host.reader.read  # type: ignore[union-attr]

    def counted(texts: Sequence[str], progress: Any = None) -> Any:
        nonlocal calls
        calls += len(texts)
        return read(texts, progress)

    host.reader.read = counted  # type: ignore[union-attr, method-assign]
    assert request(host, "golf ball") == asked
    assert calls == 1, "only the target is read again"
    assert file.stat().st_mtime_ns == written
    made = plan(host, asked, prompts_per_concept=20, seeds=1)
    assert made == plan(host, asked, prompts_per_concept=20, seeds=1)
    assert [len(g.prompts) for g in made.groups if g.role == "target"] == [20]
    near = [g for g in made.groups if g.role == "neighbour"]
    assert len(near) >= 4
    assert all("cosine" in g.reason and "rank" in g.reason for g in near[:4])
    far = [g for g in made.groups if g.role == "unrelated"]
    assert len(far) == 4
    assert len({g.reason.partition(",")[0] for g in far}) == 4
    assert all("far from golf ball" in g.reason for g in far)


def test_another_encoder_reads_anew_and_a_broken_file_too(cache: Path) -> None:
    host = fresh_host("sd")
    assert Lexicon(host).unread > 3000
    first = Lexicon(host).read()
    assert Lexicon(host).unread == 0
    with torch.no_grad():
        host.pipeline.text_encoder.get_input_embeddings().weight.mul_(-1)
    assert Lexicon(host).unread > 3000
    other = Lexicon(host).read()
    assert not torch.allclose(first.rows, other.rows)
    files = list((cache / "words").iterdir())
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:1000])
    lexicon._read.clear()
    again = Lexicon(host).read()
    assert torch.equal(again.rows, other.rows)
    lexicon._read.clear()
    kept = Lexicon(host).read()
    assert torch.equal(kept.rows, other.rows)
    assert kept.names == other.names
    assert torch.equal(kept.kinds, other.kinds)
    assert torch.equal(kept.means, other.means)
    assert kept.spelling == other.spelling


def test_what_is_kept_where_it_is_said(cache: Path) -> None:
    host = host_of("sd")
    none = request(host, "golf ball", keep="none")
    assert none.keep == ()
    assert told(host, none, keep="None", kind="object") == ["Nothing is kept (--keep none)."]
    named = request(host, "golf ball", keep="tee, flag")
    assert [c.name for c in named.keep] == ["tee", "flag"]
    assert told(host, named, keep="tee, flag", kind="object") == []
    assert not (cache / "words").exists(), "nothing was read for it"
    own = request(host, "golf ball")
    assert told(host, own)[-1].startswith(f"Keeping the model's own neighbours: {own.keep[0].name}, ")


def test_a_host_without_a_tokenizer_says_so() -> None:
    pipeline = fresh_host("sd").pipeline
    pipeline.tokenizer = None
    host = SDHost(pipeline, name="mute")
    asked = request(host, "Van Gogh")
    assert asked.keep == ()
    kind, nothing = told(host, asked)
    assert kind == "Van Gogh is taken for an artist (kind style); --kind says otherwise."
    assert nothing.startswith("Nothing is kept: mute has no tokenizer")
    assert "--keep" in nothing
    with pytest.raises(BadRequest, match="no tokenizer"):
        Lexicon(host).read()


def test_kinds_are_those_of_the_lists_unless_said() -> None:
    host = Geometry({}).host()
    assert [c.kind for c in concepts(host, "Van Gogh, dogs, crimson, forest, Einstein, blorb")] == [
        *("style", "object", "attribute", "domain", "identity", "object")
    ]
    assert concepts(host, "Van Gogh", "identity")[0].kind == "identity"
    asked = request(host, "Van Gogh, blorb", keep="none")
    assert told(host, asked, keep="none")[0].startswith("Van Gogh is taken for an artist")
    assert len(told(host, asked, keep="none")) == 2
    assert told(host, asked, keep="none", kind="style") == ["Nothing is kept (--keep none)."]


def test_neighbours_are_of_the_kind_and_no_form_of_the_target() -> None:
    words = Lexicon(Geometry({}).host())
    near = words.nearest(None, words.concept("Van Gogh"), avoid=frozenset(["monet"]))
    names = [c.name for c, _ in near]
    assert set(names) == {n for found in of_kind("style") for n in found.names} - {"Vincent van Gogh", "Claude Monet"}
    assert {list_of(n).name for n in names[:100]} == {"artists"}  # type: ignore[union-attr]
    assert [c for _, c in near] == sorted((c for _, c in near), reverse=True)
    assert all(c.kind == "style" for c, _ in near)
    of_class = words.nearest(None, Concept(name="dog", kind="class"), avoid=NOBODY)
    assert {c.kind for c, _ in of_class} == {"class"}


def test_a_tokenizers_word_is_of_the_kind_that_its_nearest_names_are_of() -> None:
    reader = Geometry(
        {
            "turbine": ("windmill", 1.4),  # a thing of its own, among things
            "bunny": ("rabbit", 0.05),  # rabbit in other letters
            "hereby": ("the", 1.4),  # of no kind
            "warhola": ("Andy Warhol", 1.4),  # persons come from the lists alone
            "dogs": ("dog", 1.4),  # a form of a listed name
            "turbines": ("windmill", 1.4),  # a form of another word
        }
    )
    words = Lexicon(reader.host())
    told: list[tuple[int, int]] = []
    places = words.read(lambda done, total: told.append((done, total)))
    assert told
    assert set(places.names) - _EVERY == {"turbine"}
    kinds = get_args(Kind)
    assert kinds[int(places.kinds[places.names.index("turbine")])] == "object"
    near = words.nearest(None, words.concept("windmill"), avoid=NOBODY)
    assert "turbine" in [c.name for c, _ in near[:8]]
    assert "turbine" not in [c.name for c, _ in words.nearest(None, words.concept("forest"), avoid=NOBODY)]
    assert "turbine" not in [
        c.name for c, _ in words.nearest(None, words.concept("cat"), avoid=frozenset(["turbines"]))
    ]


def test_names_that_spell_an_unlisted_target_are_no_neighbours() -> None:
    reader = Geometry({"puppydog": ("rabbit", 0.05), "turbine": ("windmill", 1.4)})
    words = Lexicon(reader.host())
    names = [c.name for c, _ in words.nearest(None, words.concept("puppydog"), avoid=NOBODY)]
    assert "rabbit" not in names
    assert len(names) > 400
    assert "rabbit" in [c.name for c, _ in words.nearest(None, words.concept("hare"), avoid=NOBODY)]
    reader.near["bine"] = ("dog", 1.4)  # a scrap of the word, wherever it lies
    assert "turbine" not in [c.name for c, _ in words.nearest(None, words.concept("bine"), avoid=NOBODY)]


def test_unrelated_concepts_are_common_far_and_of_other_fields() -> None:
    words = Lexicon(Geometry({}).host())
    gogh = words.concept("Van Gogh")
    found = words.others([gogh], avoid=frozenset(["dog"]))
    assert [why.partition(",")[0] for _, why in found[:4]] == ["an animal", "an object", "a scene", "a colour"]
    assert all("far from Van Gogh in the model's text embeddings (cosine" in why for _, why in found)
    assert "dog" not in [c.name for c, _ in found]
    assert {c.name for c, _ in found} <= {n for kind in get_args(Kind) for n in common(kind)}
    assert not any(c.kind == "style" for c, _ in found)
    assert found == words.others([gogh], avoid=frozenset(["dog"]))
    fields = [why.partition(",")[0] for _, why in words.others([words.concept("dog")], avoid=NOBODY)]
    assert fields[0] == "an object"
    assert "an animal" not in fields
    unlisted = [why.partition(",")[0] for _, why in words.others([Concept(name="dog", kind="style")], avoid=NOBODY)]
    assert "an artist" not in unlisted


@pytest.mark.parametrize("kind", get_args(Kind))
def test_there_are_prompts_enough_and_each_once(kind: Kind) -> None:
    words, concept = Lexicon(Geometry({}).host()), Concept(name="turbine", kind=kind)
    draws = torch.Generator().manual_seed(1)
    found = words.prompts(concept, 60, generator=draws, avoid=frozenset(["turbine", "garden", "house"]))
    assert len(set(found)) == 60
    assert all(holds(p, "turbine") for p in found)
    assert not any(holds(p, "garden") or holds(p, "house") for p in found)
    assert found == words.prompts(
        concept, 60, generator=torch.Generator().manual_seed(1), avoid=frozenset(["turbine", "garden", "house"])
    )
    own = Concept(name="turbine", kind=kind, prompts=("my turbine", "turbines!"))
    assert words.prompts(own, 5, generator=draws)[:2] == ["my turbine", "turbines!"]
    assert len(set(SETTINGS[kind])) == len(SETTINGS[kind]) >= 70
    with pytest.raises(BadRequest, match="different prompts"):
        words.prompts(concept, 500, generator=draws)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("dog", "object", "a photo of a dog on a table"),
        ("apple", "object", "an apple in a garden"),
        ("mountains", "domain", "mountains at night"),
        ("bus", "object", "a bus in a garden"),
        ("Pikachu", "object", "Pikachu in a garden"),
        ("furry", "attribute", "a painting of a furry chair"),
    ],
)
def test_settings_read_as_sentences(name: str, kind: Kind, said: str) -> None:
    assert said in in_settings(Concept(name=name, kind=kind))


def test_a_drawn_worlds_model_keeps_its_own_words() -> None:
    host = Geometry({}).host()
    host.knows = Words(GLYPHS)
    assert vocabulary(host) is host.knows
    assert isinstance(vocabulary(Geometry({}).host()), Lexicon)
    assert concepts(host, "star", "style")[0].kind == "object"
