"""Lists of concepts: dialects of CSV, what a request makes of them, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from hosts_fixtures import fresh_host, host_of
from palimpsest import cli
from palimpsest.core.errors import BadRequest
from palimpsest.core.patch import Patch
from palimpsest.data.concepts import Listed, is_list, read_concepts
from palimpsest.run import load, request
from palimpsest.worlds.glyphs import GLYPHS


def test_columns_in_any_order_and_rows_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text(
        "toward,case_number,Name,prompts,kind\n"
        'moon,0,star,"a star | two stars",object\n'
        "\n"
        ',1,Van Gogh,"a tree, by Van Gogh",style\n'
        ",2,STAR,a red star,\n"
    )
    assert read_concepts(path) == [
        Listed(name="star", kind="object", prompts=("a star", "two stars", "a red star"), toward="moon"),
        Listed(name="Van Gogh", kind="style", prompts=("a tree, by Van Gogh",)),
    ]


def test_cells_are_what_the_csv_module_reads(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    rows = [
        {"name": "star", "prompt": "a red\nstar", "labels": "crane | 134"},
        {"name": "moon", "prompt": 'this | that, "both"; all', "labels": ""},
        {"name": "sun", "prompt": "\u2028 light", "labels": "sun, sunlight"},
    ]
    for mark in ",;\t":
        with open(path, "w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, ["name", "prompt", "labels"], delimiter=mark)
            out.writeheader()
            out.writerows(rows)
        listed = read_concepts(path)
        assert [(c.name, c.prompts) for c in listed] == [(r["name"], (r["prompt"].strip(),)) for r in rows]
        assert [c.labels for c in listed] == [("crane", 134), (), ("sun, sunlight",)]
    assert str(listed[1]) == 'moon  1 prompts: this | that, "both"; all'


def test_a_blank_after_the_comma_is_no_part_of_a_cell(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text('name, kind, prompts\nstar, style, "a star, red | two stars"\n')
    assert read_concepts(tmp_path / "c.csv") == [
        Listed(name="star", kind="style", prompts=("a star, red", "two stars"))
    ]


@pytest.mark.parametrize(
    "text", ["\ufeffconcept;kind\nstar;style\n", "target\tkind\nstar\tstyle\n", "kind,name\r\nstyle, star \r\n"]
)
def test_dialects(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(text, encoding="utf-8", newline="")
    assert read_concepts(tmp_path / "c.csv") == [Listed(name="star", kind="style")]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("word,kind\nstar,object\n", "no column 'name'"),
        ("", "no column"),
        ("name\n\n", "names no concept"),
        ("name,kind\nstar,thing\n", "Line 2.*'thing'"),
        ("name,kind\nstar,style\nStar,object\n", "Line 3.*before it was 'style'"),
        ("name,toward\nstar,moon\nstar,ring\n", "Line 3.*toward"),
        ("name,prompts\nstar,a star, red\n", r"Line 2 of .* has 3 cells and the first row 2; put quotes around .* ','"),
        ('name,prompts\nstar,"a star\n', "not a list of concepts.*Quotes must be closed"),
        ('name,prompts\nstar,"a" star\n', "not a list of concepts"),
        ("name,kind,name\nstar,,moon\n", "two columns 'name'"),
        ("name\nst\0ar\n", "line 2 holds a null character"),
    ],
)
def test_what_is_no_list_is_refused(text: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(BadRequest, match=word):
        read_concepts(tmp_path / "c.csv")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"none\.csv"):
        read_concepts(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"name\n\xff\xfe\n")
    with pytest.raises(BadRequest, match="UTF-8"):
        read_concepts(tmp_path / "bytes.csv")
    assert is_list("Mine.CSV")
    assert not is_list("star, moon")


def test_a_request_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("name,kind,prompts,toward,labels\nstar,,a star,ring,3\nmoon,style,,sun,\n")
    asked = request(host_of("sd"), path, kind="identity")
    assert [(c.name, c.kind, c.prompts) for c in asked.target] == [
        ("star", "identity", ("a star",)),
        ("moon", "style", ()),
    ]
    assert [c.labels for c in asked.target] == [(3,), ()]
    assert [c.name for c in asked.toward] == ["ring", "sun"]
    assert [c.name for c in request(host_of("sd"), str(path), toward="sea").toward] == ["sea"]
    path.write_text("name,toward\nstar,ring\nmoon,\nsun,sea\n")
    with pytest.raises(BadRequest, match="2 replacements for 3 targets"):
        request(host_of("sd"), path)


def test_a_drawn_worlds_words_keep_what_the_world_knows(tmp_path: Path) -> None:
    host = load("tiny/sd")
    (tmp_path / "c.csv").write_text("name,prompts\nstar,my own star\nwatercolour,\n")
    star, style = request(host, tmp_path / "c.csv").target
    assert (star.kind, star.labels, star.prompts) == ("object", ("subject:star",), ("my own star",))
    assert (style.kind, style.prompts) == ("style", GLYPHS.wordings(style="watercolour"))
    (tmp_path / "c.csv").write_text("name\nzebra crossing\n")
    with pytest.raises(BadRequest, match="zebra"):
        request(host, tmp_path / "c.csv")


def test_many_concepts_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = fresh_host("sd")
    (tmp_path / "c.csv").write_text("name,kind\nstar,object\nVan Gogh,style\nmoon,object\n")
    args = ["erase", str(tmp_path / "c.csv"), "--model", str(host.folder), "--keep", "house", "--method", "uce"]
    small = ["--prompts", "1", "--seeds", "1", "--sample-steps", "1", "--out", str(tmp_path / "out")]
    assert cli.main([*args, *small]) == 0
    assert "read     star  object\nread     Van Gogh  style\nread     moon  object\n" in capsys.readouterr().out
    made = Patch.load(tmp_path / "out" / "patch.safetensors").provenance["request"]
    assert [(c["name"], c["kind"]) for c in made["target"]] == [
        ("star", "object"),
        ("Van Gogh", "style"),
        ("moon", "object"),
    ]
