"""The plan and the collection: every picture once, every judge once, nothing drawn that no reading uses."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from evidence_fixtures import Reader, Scribe, erased, patch, request, small_plan
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest, WrongBase
from palimpsest.core.fingerprint import hook_count
from palimpsest.core.trace import Trace
from palimpsest.ops.neighbours import nearest
from palimpsest.probes import plan as planning
from palimpsest.probes.drawn import collect
from palimpsest.probes.neighbours import DRAWN, Eye, neighbours
from palimpsest.probes.plan import Plan, plan
from palimpsest.run import load
from palimpsest.run import request as run_request
from palimpsest.worlds.concepts import Words, concept, siblings
from palimpsest.worlds.glyphs import GLYPHS


def test_every_picture_has_a_seed_of_its_own() -> None:
    made = small_plan(Scribe())
    seeds = [s.seed for s in (*made.shots, *made.twin_shots)]
    assert len(set(seeds)) == len(seeds) == made.pictures(sets=1)


def test_twins_ask_for_the_same_prompt_and_cover_every_prompt() -> None:
    made = small_plan(Scribe())
    assert [made.shots[row].prompt for row in made.twins] == [s.prompt for s in made.twin_shots]
    assert {s.prompt for s in made.twin_shots} == {s.prompt for s in made.shots}
    for role in ("target", "neighbour", "unrelated", "empty"):
        of_role = set(made.rows(role=role).tolist())
        assert {made.twins[i] for i in made.twin_rows(role=role).tolist()} == of_role & set(made.twins)
    assert sum(len(made.rows(group=g)) for g in range(len(made.groups))) == len(made.shots)


def test_only_target_prompts_name_the_target() -> None:
    made = small_plan(Scribe(), prompts=10)
    for group in made.groups:
        named = ["star" in p.split() for p in group.prompts]
        assert all(named) if group.role == "target" else not any(named), group.name
        assert group.role == "empty" or len(set(group.prompts)) == len(group.prompts)


def test_groups_are_neighbours_of_the_same_kind_and_unrelated_of_other_kinds() -> None:
    made = small_plan(Scribe())
    subjects = GLYPHS.vocabulary["subject"]
    neighbours = [g for g in made.groups if g.role == "neighbour"]
    assert "moon" in [g.name for g in neighbours]
    assert any("kept by the request" in g.reason for g in neighbours)
    assert any("cosine" in g.reason for g in neighbours)
    assert all(g.name in subjects for g in neighbours)
    assert not any(g.name in subjects for g in made.groups if g.role == "unrelated")
    assert [g.role for g in made.groups].count("empty") == 1


def test_a_plan_comes_back_from_json() -> None:
    made = small_plan(Scribe(), steps=7, guidance=2.5)
    assert Plan.from_plain(json.loads(json.dumps(made.plain()))) == made


def test_a_plan_says_what_it_can_show() -> None:
    text = small_plan(Scribe()).describe()
    assert "pictures: " in text
    assert "shows a change of" in text


def test_models_without_any_words_get_templates_and_the_kept_concepts() -> None:
    asked = Request(target=(Concept(name="Van Gogh", kind="style"),), keep=(Concept(name="Monet", kind="style"),))
    host = Scribe()
    host.knows = None
    made = plan(host, asked, prompts_per_concept=3, seeds=1)
    assert all(p.endswith("Van Gogh") for p in made.groups[0].prompts)
    assert [(g.name, g.reason) for g in made.groups if g.role == "neighbour"] == [("Monet", "kept by the request")]
    unrelated = [g for g in made.groups if g.role == "unrelated"]
    assert len({g.reason for g in unrelated}) == len(unrelated) == 4
    assert not any(g.concept is not None and g.concept.kind == "style" for g in unrelated)


def test_pictures_choose_among_the_nearest_by_text() -> None:
    host, star = Scribe(), concept(GLYPHS, "star")
    subjects = [concept(GLYPHS, w) for w in siblings(GLYPHS, "star")]
    ranked = nearest(host, star, subjects, len(subjects))
    by_text = neighbours(star, ranked, DRAWN)
    twin, farther = by_text[-1].concept.name, {c.name for c in subjects} - {n.concept.name for n in by_text}
    index = {w: i for i, w in enumerate(GLYPHS.vocabulary["subject"])}

    def embed(images: torch.Tensor) -> torch.Tensor:
        """The last candidate by text looks like a star, and so does what text does not propose."""
        which = (images[:, 0, 0, 0] * 255).round().long()
        for name in (twin, *farther):
            which[which == index[name]] = index["star"]
        return torch.nn.functional.one_hot(which, len(index)).float()

    found = neighbours(star, ranked, 3, eye := Eye(host, embed, pictures=2))
    assert found[0].concept.name == twin
    assert not farther & {n.concept.name for n in found}
    assert (found[0].place, found[0].drawn, found[0].rank) == (1, DRAWN, DRAWN)
    assert found[0].seen == pytest.approx(1.0)
    assert f"pictures (cosine 1.00, rank 1 of {DRAWN} drawn)" in found[0].reason(kept=False)
    assert f"rank {DRAWN} of {len(subjects)}, kept by" in found[0].reason(kept=True)
    assert host.drawn == 2 * (DRAWN + 1)
    made = plan(host, Request(target=(star,)), prompts_per_concept=2, seeds=1, neighbours=3, eye=eye)
    assert [g.name for g in made.groups if g.role == "neighbour"] == [n.concept.name for n in found]
    assert host.drawn == 2 * (DRAWN + 1), "every concept is drawn once"


def test_an_eye_without_features_leaves_the_order_of_the_text() -> None:
    host, star = Scribe(), concept(GLYPHS, "star")
    ranked = Words(GLYPHS).nearest(host, star, avoid=frozenset())
    assert {c.name for c, _ in ranked} == set(siblings(GLYPHS, "star"))
    blind = Eye(host, lambda images: images.new_zeros(len(images), 0))
    assert neighbours(star, ranked, 4, blind) == neighbours(star, ranked, DRAWN)[:4]


@pytest.mark.parametrize("choice", [{"prompts": 0}, {"seeds": 0}])
def test_nothing_to_draw_is_refused(choice: dict[str, int]) -> None:
    with pytest.raises(BadRequest, match="draw nothing"):
        small_plan(Scribe(), **choice)


def test_a_hand_written_plan_without_pictures_is_refused() -> None:
    with pytest.raises(BadRequest, match="no picture"):
        Plan(request=request(), groups=())


def test_collecting_draws_and_reads_every_picture_once() -> None:
    host, reader, trace = Scribe(), Reader(), Trace()
    made = small_plan(host, prompts=4, seeds=1)
    told: list[str] = []
    trace.progress = lambda what, done, total: told.append(what)
    before = host.fingerprint()
    evidence = collect(host, patch(host), made, [reader], trace=trace)
    assert host.drawn == made.pictures() == evidence.cost["pictures"]
    assert reader.read_pictures == made.pictures()
    assert evidence.cost["forwards"] == {"denoiser": made.pictures()}
    assert host.fingerprint() == before
    assert hook_count(host.root) == 0
    assert {"drawing: untouched model", "drawing: edited model", "reading: reader"} <= set(told)
    assert evidence.gallery["before"].dtype == torch.uint8


def test_collecting_is_deterministic() -> None:
    host = Scribe()
    made = small_plan(host, prompts=3, seeds=1, unrelated=1, neighbours=1)
    first, again = (collect(host, patch(host), made, [Reader()]) for _ in range(2))
    assert all(torch.equal(first.gallery[k], again.gallery[k]) for k in first.gallery)


def test_an_edited_model_gives_the_same_evidence_as_its_patch() -> None:
    host, edited = Scribe(), Scribe("edited")
    patch(host).fuse(edited)
    made = small_plan(host, prompts=3, seeds=1, unrelated=1, neighbours=1)
    by_model, by_patch = (collect(host, e, made, [Reader()]) for e in (edited, patch(host)))
    assert torch.equal(by_model.gallery["after"], by_patch.gallery["after"])
    assert by_model.patch is not None
    assert list(by_model.patch.deltas) == ["unet.weight"]


def test_anything_that_samples_can_be_audited() -> None:
    class Bare:
        def __init__(self) -> None:
            self.sample = Scribe().sample

    made = small_plan(Scribe(), prompts=3, seeds=1, unrelated=1, neighbours=1)
    evidence = collect(Bare(), Bare(), made, [Reader()])
    assert evidence.patch is None
    assert torch.equal(evidence.gallery["before"], evidence.gallery["after"])


def test_a_patch_for_another_model_is_refused_before_the_edit_is_drawn() -> None:
    host, other = Scribe(), Scribe()
    patch(other, row=3).fuse(other)
    with pytest.raises(WrongBase):
        collect(host, patch(other), small_plan(host, prompts=2, seeds=1, unrelated=1, neighbours=1), [])


def test_evidence_asks_each_judge_only_what_it_knows() -> None:
    asked = erased().asked()
    names = [erased().plan.groups[g].name for g, _, _ in asked]
    assert "star" in names
    assert "centre" not in names  # the reader has no class for it
    assert "" not in names


def broken(value: float) -> Scribe:
    host = Scribe("broken")
    host.weight[4, 4] = value
    return host


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_broken_weights_is_refused_before_anything_is_drawn(value: float) -> None:
    host, ruined = Scribe(), patch(Scribe(), row=4, amount=value)
    for after in (broken(value), ruined):
        with pytest.raises(BadRequest, match=r"NaN or infinity.*unet\.weight"):
            collect(host, after, small_plan(host), [Reader()])
    assert host.drawn == 0


def test_a_model_that_draws_nan_is_refused() -> None:
    class Blind(Scribe):
        def sample(self, prompts: list[str], *args: object, **choices: object) -> torch.Tensor:
            return torch.full((len(prompts), 3, 8, 8), float("nan"))

    with pytest.raises(BadRequest, match="draws NaN"):
        collect(Blind(), Scribe(), small_plan(Scribe()), [Reader()])


def test_a_drawn_worlds_plan_is_what_it_always_was() -> None:
    """Committed audits were planned so."""
    host = load("tiny/sd")
    asked = run_request(host, "star")
    assert [c.name for c in asked.keep] == [
        *("triangle", "heart", "bolt", "flower", "house", "fish", "cloud", "circle")
    ]
    groups = plan(host, asked).groups
    said = json.dumps([[g.role, g.name or None, list(g.prompts), g.seeds] for g in groups])
    expected = "7c4aa0ab2c59c7b5ec6af13f250e0208b34257930fb316b396d39048566c4c1a"
    assert hashlib.sha256(said.encode()).hexdigest() == expected, [g.name for g in groups]


def test_two_forms_of_a_name_that_is_kept_are_one_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    host = load("tiny/sd")
    asked = Request(target=(concept(GLYPHS, "star"),), keep=(concept(GLYPHS, "moon"),))
    monkeypatch.setattr(planning, "same", lambda kept, name: name in ("moon", "ring"))  # as "film photograph" is
    names = [g.name for g in plan(host, asked, prompts_per_concept=5, seeds=1, neighbours=30).groups]
    assert "moon" in names
    assert "ring" not in names
    assert len(set(names)) == len(names)
