"""Files of prompts: the dialects that papers publish, what is left out, and what is refused by its line."""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palimpsest.core.errors import BadRequest
from palimpsest.data.prompts import MOST_SEED, Row, read_prompts

A, B = "a cat, sleeping", 'a "neon" star'
CELLS = f'"{A}"', '"a ""neon"" star"'
DIALECTS: dict[str, tuple[str, list[Row], set[str]]] = {
    # name -> (text, rows, headings that give nothing)
    "I2P": (
        "prompt,categories,hard,nudity_percentage,sd_seed,sd_guidance_scale,sd_image_width,sd_model\n"
        f'{CELLS[0]},"hate, shame",1,.0,4290749014,7.5,512,v1\n{CELLS[1]},x,0,.0,7,12,512,v1\n',
        [Row(prompt=A, seed=4290749014, guidance=7.5), Row(prompt=B, seed=7, guidance=12.0)],
        {"categories", "hard", "nudity_percentage", "sd_image_width", "sd_model"},
    ),
    "ESD with an index": (
        f",case_number,prompt,evaluation_seed,artist\n0,0,{CELLS[0]},3,Monet\n1,1,{CELLS[1]},4,Monet\n",
        [Row(prompt=A, seed=3), Row(prompt=B, seed=4)],
        {"case_number", "artist"},
    ),
    "UnlearnDiffAtk": (
        f"Unnamed: 0,case_number,prompt,evaluation_seed,artist,evaluation_guidance\n0,0,{CELLS[0]},3,x,7.5\n",
        [Row(prompt=A, seed=3, guidance=7.5)],
        {"unnamed: 0", "case_number", "artist"},
    ),
    "COCO": (f"image_id,text\n5,{CELLS[0]}\n6,{CELLS[1]}\n", [Row(prompt=A), Row(prompt=B)], {"image_id"}),
    "COCO of UCE": (
        f"case_number,source,prompt,evaluation_seed,coco_id\n0,coco,{CELLS[0]},3,9\n",
        [Row(prompt=A, seed=3)],
        {"case_number", "source", "coco_id"},
    ),
    "SPEED": (
        f"id,type,text,concept,seed\n1,erase,{CELLS[0]},x,1\n",
        [Row(prompt=A, seed=1)],
        {"id", "type", "concept"},
    ),
    "Ring-A-Bell": (
        f"sensitive prompt,normal prompt\n{CELLS[0]},{CELLS[1]}\n",
        [Row(prompt=A)],
        {"normal prompt"},
    ),
    "attacks of Ring-A-Bell": (
        "prompt,case_number,evaluation_seed\nab \x10cd \x07,0,5\n",
        [Row(prompt="ab \x10cd \x07", seed=5)],
        {"case_number"},
    ),
    "metadata.csv": (f"file_name,text\na.png,{CELLS[0]}\n", [Row(prompt=A)], {"file_name"}),
    "HUB without a heading": (
        'some words\nmore, of them\nan "odd one\n',
        [Row(prompt="some words"), Row(prompt="more, of them"), Row(prompt='an "odd one')],
        set(),
    ),
    "written without a heading": (f"{CELLS[0]}\n{CELLS[1]}\n", [Row(prompt=A), Row(prompt=B)], set()),
}


def kept(folder: Path, text: str | bytes, name: str = "p.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("how", ["plain", "mark", "lines of Windows"])
def test_dialects(dialect: str, how: str, tmp_path: Path) -> None:
    text, rows, unused = DIALECTS[dialect]
    content = {"plain": text, "mark": "\ufeff" + text, "lines of Windows": text.replace("\n", "\r\n")}[how]
    found = read_prompts(kept(tmp_path, content))
    assert list(found.rows) == rows
    assert set(found.unused) == unused
    assert not found.left_out
    told = "\n".join(found.told())
    assert f"{len(rows)} rows read" in told
    assert all(name in told for name in unused)


@pytest.mark.parametrize("mark", ",;\t")
def test_cells_hold_commas_quotes_and_line_ends(mark: str, tmp_path: Path) -> None:
    prompts = ["a red\nstar", 'this; that, "both"', "\u2028 light", "tab\there"]
    text = StringIO()
    csv.writer(text, delimiter=mark).writerows([["seed", "Prompt"], *([i, p] for i, p in enumerate(prompts))])
    found = read_prompts(kept(tmp_path, text.getvalue()))
    assert [(row.seed, row.prompt) for row in found.rows] == list(enumerate(p.strip() for p in prompts))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), min_size=1).filter(str.strip),
            st.none() | st.integers(0, MOST_SEED),
            st.none() | st.floats(-1000, 1000).map(lambda x: round(x, 3)),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda row: row[0].strip(),
    )
)
def test_a_table_comes_back_as_it_was_written(tmp_path: Path, rows: list[tuple[str, int | None, float | None]]) -> None:
    text = StringIO()
    csv.writer(text).writerows(
        [["case_number", "prompt", "evaluation_seed", "evaluation_guidance"], *([0, *row] for row in rows)]
    )
    found = read_prompts(kept(tmp_path, text.getvalue()))
    assert [(r.prompt, r.seed, r.guidance) for r in found.rows] == [(p.strip(), s, g) for p, s, g in rows]
    lines = "\n".join(json.dumps({"prompt": p, "seed": s, "guidance": g}) for p, s, g in rows)
    assert read_prompts(kept(tmp_path, lines, "p.jsonl")).rows == found.rows


def test_plain_text_and_json(tmp_path: Path) -> None:
    found = read_prompts(kept(tmp_path, "prompt, of a cat\n\n  a dog \n", "mine.txt"))
    assert [row.prompt for row in found.rows] == ["prompt, of a cat", "a dog"]
    assert "one a line" in found.told()[0]
    assert read_prompts(kept(tmp_path, json.dumps([A, B]), "p.json")).rows == (Row(prompt=A), Row(prompt=B))
    hub = [{"prompt": A, "nouns": ["cat "], "index": 3}]
    found = read_prompts(kept(tmp_path, json.dumps(hub), "p.json"))
    assert (found.rows, found.unused) == ((Row(prompt=A),), ("nouns", "index"))
    lines = '{"file_name": "a.png", "text": "a cat", "seed": 3.0}\n\n{"file_name": "b.png", "text": "a dog"}\n'
    found = read_prompts(kept(tmp_path, lines, "metadata.jsonl"))
    assert found.rows == (Row(prompt="a cat", seed=3), Row(prompt="a dog"))


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    text = "prompt,seed\na cat,1\n,2\na dog,\na cat,1\na cat,2\na dog,\n"
    found = read_prompts(kept(tmp_path, text))
    cat, dog = "a cat", Row(prompt="a dog")
    assert found.rows == (Row(prompt=cat, seed=1), dog, Row(prompt=cat, seed=2), dog)
    assert found.again == 1
    told = "\n".join(found.told())
    assert "left out: rows without a prompt: 1 (line 3)" in told
    assert "left out: rows that repeat an earlier one and its seed: 1 (line 5)" in told
    assert "1 rows repeat a prompt and have no seed" in told


def test_seeds_as_tables_with_gaps_are_written(tmp_path: Path) -> None:
    found = read_prompts(kept(tmp_path, "prompt,evaluation_seed,guidance\na cat,3.0,\na dog,,7\n"))
    assert found.rows == (Row(prompt="a cat", seed=3), Row(prompt="a dog", guidance=7.0))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.csv", "", "holds no prompt"),
        ("p.csv", "\n \n", "holds no prompt"),
        ("p.csv", "prompt,seed\n", "holds no prompt"),
        ("p.csv", "prompt,seed\n,3\n", "holds no prompt"),
        ("p.csv", "prompt,seed\na,1e20\n", r"seed '1e20' \(line 2\); expected a whole number from 0"),
        ("p.csv", "prompt,seed\na,1\nb,-1\nc,x\n", r"seed '-1' \(line 3\), 'x' \(line 4\); expected"),
        ("p.csv", f"prompt,seed\na,{2**64}\n", "seed"),
        ("p.csv", "prompt,seed\na,1.5\n", "seed '1.5'"),
        ("p.csv", "prompt,seed\na,4.06E+09\n", "seed"),
        ("p.csv", "prompt,guidance\na,n/a\n", r"guidance 'n/a' \(line 2\); expected a number"),
        ("p.csv", "prompt,guidance\na,inf\n", "guidance 'inf'"),
        ("p.csv", "prompt,guidance\na,nan\n", "guidance 'nan'"),
        ("p.csv", "prompt,guidance\na,1e9\n", "guidance '1e9'"),
        ("p.csv", "prompt,seed\n" + "a,x\n" * 9, "and 4 more"),
        ("p.csv", "id,concept\n1,cat\n2,dog\n", "has the columns id, concept; none is called prompt"),
        ("p.csv", "prompt,seed\na,1,2\n", "Line 2"),
        ("p.csv", 'prompt\n"a\n', "Quotes must be closed"),
        ("p.csv", b"prompt\na cat\ncaf\xe9\n", "line 3 has the byte 0xe9"),
        ("p.csv", "prompt\na\nb".encode("utf-16"), "line 1 has the byte 0xff"),
        ("p.csv", b"prompt\na\0b\n", "line 2 holds a null character"),
        ("p.txt", "case_number,prompt,seed\n", "named like plain text"),
        ("p.txt", "prompt\na cat\n", "named like plain text"),
        ("p.json", '{"prompt": "a"}', "expected a list"),
        ("p.json", '["a", 3]', "expected texts, or objects, alone"),
        ("p.json", '[{"prompt": 3}]', r"prompt 3 \(line 1\); expected text"),
        ("p.json", '[{"prompt": "a", "seed": true}]', "seed True"),
        ("p.json", '[{"prompt": "a", "seed": 1e20}]', "seed"),
        ("p.json", '[{"prompt": "a", "guidance": [7]}]', "guidance"),
        ("p.json", '[{"title": "a"}]', "has the keys title"),
        ("p.json", "[", "is not the JSON"),
        ("p.jsonl", '{"prompt": "a"}\nx\n', "line 2"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, text: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=words):
        read_prompts(kept(tmp_path, text, name))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(BadRequest, match="cannot be read as prompts"):
            read_prompts(path)
