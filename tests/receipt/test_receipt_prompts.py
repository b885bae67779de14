"""Prompts of the user's own in a plan, in what is collected and in the receipt: their seeds, guidance and section."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from evidence_fixtures import Reader, Scribe, damaging, request, small_plan
from palimpsest.core.errors import BadRequest
from palimpsest.core.sampling import Sampling
from palimpsest.probes.drawn import collect
from palimpsest.probes.gallery import Gallery
from palimpsest.probes.groups import LISTED, Group
from palimpsest.probes.plan import Plan
from palimpsest.probes.stopping import collect_until_clear
from palimpsest.receipt import Receipt, audit
from palimpsest.receipt.finding import exit_code
from palimpsest.receipt.subjects.generator import Generator
from palimpsest.receipt.verify import verify
from palimpsest.run.looking import Look, _listed

TABLE = (
    "prompt,evaluation_seed,evaluation_guidance\n"
    "a red star,4290749014,7.5\n"
    "a blue star,7,9\n"
    "a red star,8,7.5\n"
    ",9,7.5\n"
    "a <b>moon</b> \x10 star,7,\n"
    "a house,,\n"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "theirs.csv"
    path.write_text(TABLE)
    return path


def planned(host: Scribe, *files: Path, seeds: int = 2) -> Plan:
    """A few pictures beside the files' own: what is tested here are the files."""
    listed = _listed(Look(seeds=seeds, prompts_files=files))  # what `run.plan` adds
    return replace(few(host), groups=(*few(host).groups, *listed))


def few(host: Scribe) -> Plan:
    return small_plan(host, prompts=2, seeds=1, neighbours=1, unrelated=1)


class Noting(Scribe):
    """Notes with which guidance each prompt was drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int, float | None]] = []

    def latents(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def sample(self, prompts: Sequence[str], seeds: Sequence[int], how: Sampling = Sampling(), **more: Any) -> Tensor:
        self.asked += [(p, s, how.guidance) for p, s in zip(prompts, seeds, strict=True)]
        return super().sample(prompts, seeds, how, **more)


def test_rows_bring_their_seeds_and_guidance(file: Path) -> None:
    host = Noting()
    made = planned(host, file)
    mine = [s for s in made.shots if made.groups[s.group].role == LISTED]
    assert [(s.prompt, s.guidance) for s in mine] == [
        ("a red star", 7.5),
        ("a blue star", 9.0),
        ("a red star", 7.5),
        ("a <b>moon</b> \x10 star", None),
        ("a house", None),
        ("a house", None),
    ]
    assert [s.seed for s in mine[:4]] == [4290749014, 7, 8, 7]
    others = [s for s in made.shots if s not in mine]
    assert others == list(few(host).shots), "the rest of the plan is as without them"
    counted = [s.seed for s in (*others, *mine[4:], *made.twin_shots)]
    assert len(set(counted)) == len(counted)
    group = made.groups[-1]
    assert group.concept is None
    assert group.name == "theirs.csv"
    assert "rows without a prompt: 1 (line 5)" in group.reason
    assert "listed     theirs.csv" in made.describe()
    assert Plan.from_plain(json.loads(json.dumps(made.plain()))) == made
    host.asked.clear()
    collect(host, host, made, [])
    asked = {(p, s): g for p, s, g in host.asked}
    assert asked["a blue star", 7] == 9.0
    assert asked["a red star", 4290749014] == 7.5
    assert asked["a <b>moon</b> \x10 star", 7] is made.guidance


def test_half_of_a_file_tells_its_noise_under_seeds_that_no_row_has(file: Path) -> None:
    lines = "".join(f"a red star,{seed}\n" for seed in range(60, 140))
    file.write_text(f"prompt,seed\n{lines}")
    made = planned(Scribe(), file)
    twins = made.twin_rows(group=len(made.groups) - 1)
    assert len(twins) == 40
    assert not {made.twin_shots[i].seed for i in twins} & set(range(60, 140))


def test_an_audit_that_stops_early_sees_more_than_a_files_beginning(file: Path) -> None:
    file.write_text("prompt,seed\n" + "".join(f"a red star {i},{i}\n" for i in range(40)))
    early = replace(planned(Scribe(), file), look=1, looks=4)
    rows = [int(early.shots[i].prompt.split()[-1]) for i in early.rows(role=LISTED).tolist()]
    assert len(rows) == 10
    assert max(rows) > 20
    evidence = collect_until_clear(Scribe(), Scribe(), replace(early, look=1, looks=1), [Reader()])
    assert evidence.plan.looks == 4


def test_pictures_of_one_prompt_and_seed_differ_by_guidance(file: Path, tmp_path: Path) -> None:
    file.write_text("prompt,seed,guidance\na star,3,2\na star,3,9\n")
    made = planned(Noting(), file)
    shots = [s for s in made.shots if s.prompt == "a star"]
    gallery = Gallery(tmp_path / "kept", "key")
    collect(Noting(), Noting(), made, [], gallery=gallery)
    assert len(shots) == 2
    again = Gallery(tmp_path / "kept", "key", resume=True)
    assert not again.missing("before", made.shots)
    assert again.missing("before", [replace(shots[0], guidance=4.0)])


def test_two_files_of_one_name_and_seeds_for_other_prompts_are_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    second = tmp_path / "other" / "theirs.csv"
    second.write_text("a star\n")
    with pytest.raises(BadRequest, match=r"Two files of prompts are called theirs\.csv"):
        planned(Noting(), file, second)
    with pytest.raises(BadRequest, match="1 seeds for 2 prompts"):
        Group(role=LISTED, concept=None, prompts=("a", "b"), seeds=1, row_seeds=(3,))


def finished(file: Path, out: Path) -> Receipt:
    host = Noting()
    subject = Generator(plan=planned(host, file), judges=[Reader()])
    return audit(host, damaging(host), request("star", keep=["moon"]), subject=subject, out=out, command="x")


def test_the_receipt_has_a_section_of_them(file: Path, tmp_path: Path) -> None:
    file.write_text(TABLE + "".join(f"a red star,{seed},\n" for seed in range(20, 40)))
    done = finished(file, tmp_path / "out")
    listed = {(r.name, r.concept): r for r in done.readings if r.role == LISTED}
    shown = listed["presence", "star in theirs.csv"]
    assert (shown.n, shown.value) == (26, 0.0)
    assert shown.before is not None
    assert shown.before > 80
    assert {name for name, _ in listed} >= {"pixel drift", "feature drift", "kernel distance", "collapse", "leakage"}
    assert listed["pixel drift", "theirs.csv"].value > 0
    assert done.presence("star") is not shown
    assert done.html is not None
    assert done.json is not None
    page = done.html.read_text(encoding="utf-8")
    assert "Prompts from files" in page
    assert "star in theirs.csv" in page
    assert "a &lt;b&gt;moon&lt;/b&gt; \\x10 star" in page
    assert page.count("star in theirs.csv</td>") == 1, "it stands in its own table alone"
    assert "24 with a seed of their own" in page
    text = done.summary()
    assert "The user's own prompts: star in theirs.csv, 0 % (0–13) of 26 pictures show it, before" in text
    findings = verify(done.json, remeasure="all", before=Noting(), subject=Generator(judges=[Reader()]))
    assert exit_code(findings) == 0, [f for f in findings if not f.ok]


def test_a_receipt_that_is_too_long_for_its_page_lies_beside_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("palimpsest.receipt.downloads.INSIDE", 1_000)
    done = finished(file, tmp_path / "out")
    assert done.html is not None
    page = done.html.read_text(encoding="utf-8")
    assert 'download="receipt.json"' not in page
    assert "receipt.json, too long for it, lies beside it" in page
    assert 'download="readings.csv"' in page
