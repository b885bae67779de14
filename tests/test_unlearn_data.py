"""Users' pictures become Samples, and forget requests split them; what is wrong is named."""

from __future__ import annotations

import json
import unicodedata
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.data.arrays import from_arrays
from palimpsest.data.dataset import Dataset, aligned
from palimpsest.data.forget import ForgetRequest, chosen, drawn, record, resolved, split
from palimpsest.data.read import read

COLOURS = {"cat": (200, 30, 30), "dog": (30, 200, 30), "owl": (30, 30, 200)}


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (16, 16), kind: str = "PNG") -> bytes:
    out = BytesIO()
    Image.new("RGB", size, colour).save(out, format=kind)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/<class>/<person>/<n>.png: two classes of two people, and one person of a third class."""
    for name, people in {"cat": ("ann", "bob"), "dog": ("ann", "bob"), "owl": ("ann",)}.items():
        for person in people:
            where = tmp_path / "pets" / "train" / name / person
            where.mkdir(parents=True)
            for n in range(2):
                (where / f"{n}.png").write_bytes(picture(COLOURS[name]))
    return tmp_path / "pets"


def table(path: Path, rows: list[dict[str, object]], names: list[str] | None = None) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = arrow.Table.from_pylist(rows)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(made, path)
    return path


def identities(data: Dataset) -> tuple[str, ...]:
    return data.samples.columns["identity"]


def arrays(n: int = 6) -> dict[str, np.ndarray]:
    return {
        "images": np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2).repeat(3, 3),
        "labels": np.arange(n) % 3,
        "identity": np.arange(n) // 2 + 1,
        "classes": np.array(["cat", "dog", "owl"]),
    }


# -- reading ---------------------------------------------------------------------------------------------


def test_an_image_folder(folder: Path) -> None:
    data = read(folder)
    assert data.classes == ("cat", "dog", "owl")
    assert data.samples.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert identities(data)[:4] == ("ann", "ann", "bob", "bob")
    assert data.samples.names[0] == "train/cat/ann/0.png"
    assert tuple(data.samples.images[4, :, 3, 3].tolist()) == COLOURS["dog"]
    assert torch.equal(read(folder / "train").samples.images, data.samples.images)


def test_pictures_are_turned_and_made_coloured(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    wide = Image.new("L", (16, 8), 0)
    wide.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row is the last column
    wide.save(tmp_path / "a" / "0.png", exif=exif)
    images = read(tmp_path).samples.images
    assert tuple(images.shape) == (1, 3, 16, 8)
    assert images[0, :, 0, 7].tolist() == [255] * 3


def test_pictures_of_several_sizes_need_a_side(folder: Path) -> None:
    (folder / "train" / "owl" / "ann" / "1.png").write_bytes(picture(COLOURS["owl"], (40, 20)))
    with pytest.raises(BadRequest, match=r"0\.png is 16x16.*1\.png is 40x20.*--size"):
        read(folder)
    data = read(folder, size=8)
    assert tuple(data.samples.images.shape) == (10, 3, 8, 8)
    assert tuple(data.samples.images[9, :, 4, 4].tolist()) == COLOURS["owl"]


def test_unreadable_pictures_are_named_and_counted_and_skipped_when_told(folder: Path) -> None:
    whole = picture(COLOURS["cat"], kind="JPEG")
    (folder / "train" / "cat" / "ann" / "0.png").write_bytes(b"no picture")
    (folder / "train" / "dog" / "bob" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Damaged, match=r"2 of 10 pictures.*cat/ann/0\.png.*dog/bob/1\.png.*--skip-unreadable"):
        read(folder)
    data = read(folder, skip_unreadable=True)
    assert len(data.samples) == 8
    assert [name.split(" ")[0] for name in data.skipped] == ["train/cat/ann/0.png", "train/dog/bob/1.png"]


def test_empty_folders_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BadRequest, match="There is no data at"):
        read(tmp_path / "nothing")
    (tmp_path / "bare").mkdir()
    with pytest.raises(BadRequest, match="one folder of pictures for each class"):
        read(tmp_path / "bare")
    (folder / "train" / "yak").mkdir()
    with pytest.raises(BadRequest, match=r"'yak' of .* holds no pictures"):
        read(folder)


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": picture(COLOURS["dog"]), "path": None}, "label": 1, "identity": "ann"}] * 2
    table(tmp_path / "set" / "data" / "train-00000-of-00002.parquet", rows, ["cat", "dog"])
    table(tmp_path / "set" / "data" / "train-00001-of-00002.parquet", rows[:1], ["cat", "dog"])
    table(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", rows[:1], ["cat", "dog"])
    data = read(tmp_path / "set")
    assert (data.classes, data.samples.names, identities(data)) == (("cat", "dog"), ("0", "1", "2"), ("ann",) * 3)
    assert len(read(tmp_path / "set", split="test").samples) == 1
    with pytest.raises(BadRequest, match="no parquet files of the split 'valid'; it has test, train"):
        read(tmp_path / "set", split="valid")


def test_parquet_with_paths_and_plain_bytes(tmp_path: Path) -> None:
    images = [{"bytes": picture(colour), "path": f"{name}.png"} for name, colour in COLOURS.items()]
    rows = [{"image": image, "label": label} for label, image in enumerate(images)]
    assert read(table(tmp_path / "a.parquet", rows)).samples.names == ("cat.png", "dog.png", "owl.png")
    plain = [{"image": image["bytes"], "label": 0} for image in images]
    assert read(table(tmp_path / "b.parquet", plain)).samples.names == ("0", "1", "2")
    with pytest.raises(BadRequest, match=r"no column 'label' .*; its columns are image"):
        read(table(tmp_path / "c.parquet", [{"image": b""}]))
    with pytest.raises(BadRequest, match=r"1 labels .* out of range, first 2 of owl\.png; expected 0 to 1"):
        read(table(tmp_path / "d.parquet", rows, ["cat", "dog"]))
    (tmp_path / "e.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(Damaged, match="cannot be read"):
        read(tmp_path / "e.parquet")


def test_arrays_in_every_layout(tmp_path: Path) -> None:
    want = from_arrays(arrays()).samples
    assert want.columns["identity"] == ("s1", "s1", "s2", "s2", "s3", "s3")
    first = arrays() | {"images": arrays()["images"].transpose(0, 3, 1, 2)}
    grey = arrays() | {"images": arrays()["images"][..., 0]}
    for form in (first, grey):
        assert torch.equal(from_arrays(form).samples.images, want.images)
    np.savez(tmp_path / "a.npz", **arrays())
    assert torch.equal(read(tmp_path / "a.npz").samples.images, want.images)
    people = {key: value for key, value in arrays().items() if key in ("images", "identity")}
    assert from_arrays(people).classes == ("s1", "s2", "s3")
    assert from_arrays(people).samples.labels.tolist() == [0, 0, 1, 1, 2, 2]
    values = from_arrays({"images": arrays()["images"], "labels": np.linspace(0, 1, 6)})
    assert values.classes == ()
    assert values.samples.labels.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": np.array([0, 1, 2, 0, 1, 3])}, "first 3 of 5; expected 0 to 2"),
        ({"labels": np.array([0, 1, 2, 0, -1, 0])}, "first -1 of 4; expected 0 to 2"),
        ({"labels": np.array([0.0, 1.5, 2, 0, 1, 2])}, "expected whole numbers"),
        ({"labels": np.array([0, 1])}, "6 pictures and 'labels' of .2,."),
        ({"images": np.zeros((6, 8, 8, 3), np.int32)}, "are int32 .* in uint8, uint16 or floats"),
        ({"images": np.zeros((6, 8, 8), np.float32) - 0.1}, "are float32 from -0.1 to -0.1, a range that is not known"),
        ({"images": np.zeros((6, 3, 8, 3), np.uint8)}, "expected .n, H, W"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "has no pictures"),
        ({"images": np.zeros((6, 0, 8, 3), np.uint8)}, "each side at least 1 pixel"),
        ({"images": np.zeros((6, 8, 0), np.float32)}, "each side at least 1 pixel"),
        ({"masks": np.zeros((6, 0, 0), np.uint8)}, "each side at least 1 pixel"),
        ({"masks": np.zeros((0, 8, 8), np.uint8)}, "6 pictures and 'masks' of .0, 8, 8."),
    ],
)
def test_wrong_arrays_are_told(change: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        from_arrays(arrays() | change)


@pytest.mark.parametrize("key", ["images", "labels", "names", "classes", "captions", "identity", "masks", "camera"])
def test_arrays_of_any_shape_and_type_are_read_or_told(key: str) -> None:
    shapes = [(), (0,), (6,), (1,), (6, 0), (6, 1), (6, 0, 0), (6, 8, 0, 3), (6, 3, 0, 0), (6, 1, 8, 3), (6, 3, 1, 8)]
    shapes += [(6, 8, 1), (6, 1, 1), (6, 1, 4000, 3), (6, 8, 8), (6, 8, 8, 1), (0, 8, 8, 3), (3, 8, 8, 3)]
    whole = {**arrays(), "masks": np.ones((6, 8, 8), np.uint8), "captions": np.array(list("abcdef"))}
    for shape in shapes:
        for kind in ("u1", "u2", "i8", "f2", "f8", "?", "c8", "U3", "S3", "M8[s]", "V4"):
            for size in (None, 5):
                try:
                    read = from_arrays({**whole, key: np.zeros(shape, kind)}, size=size).samples
                except BadRequest:
                    continue
                assert min(read.images.shape) > 0
                assert read.pixels().isfinite().all()


def test_a_row_of_pixels_is_a_picture() -> None:
    row = np.arange(6 * 9, dtype=np.uint8).reshape(6, 1, 9)
    assert from_arrays({**arrays(), "images": row}).samples.images.shape == (6, 3, 1, 9)
    assert from_arrays({**arrays(), "images": row}, size=4).samples.images.shape == (6, 3, 4, 4)


def test_arrays_with_objects_or_damage_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([{}], dtype=object))
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:50])
    for name in ("a.npz", "b.npz"):
        with pytest.raises(Damaged, match="cannot be read as arrays"):
            read(tmp_path / name)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(BadRequest, match=r"value of 1 .* is nan"):
        from_arrays({"images": arrays(2)["images"], "labels": np.array([0.0, np.nan])})


# -- a model's classes and the data's --------------------------------------------------------------------


def test_classes_are_matched_by_name() -> None:
    data = from_arrays(arrays())
    assert aligned(data, ("cat", "dog", "owl"), "m") is data
    turned = aligned(data, ("yak", "Owl, strix", "dog", "cat"), "m")
    assert turned.samples.labels.tolist() == [3, 2, 1, 3, 2, 1]
    assert turned.matched == (("owl", "Owl, strix"),)
    assert turned.told()[-1] == "classes  owl is Owl, strix"
    with pytest.raises(BadRequest, match="class 'owl' is none of the 3 classes of m: cat, dog, yak"):
        aligned(data, ("cat", "dog", "yak"), "m")
    with pytest.raises(BadRequest, match=r"class 'cat' is none .* never by their order"):
        aligned(data, ("LABEL_0", "LABEL_1", "LABEL_2"), "m")
    with pytest.raises(BadRequest, match="'cat' and 'dog' are one class of m, 'cat, dog'"):
        aligned(data, ("cat, dog", "owl"), "m")


WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def test_folders_that_are_numbers_mean_the_labels_of_those_numbers(tmp_path: Path) -> None:
    for name in ("3", "5", "07"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(picture(COLOURS["cat"]))
    data = read(tmp_path)
    words = aligned(data, WORDS, "m")
    assert [words.classes[i] for i in words.samples.labels.tolist()] == ["seven", "three", "five"]
    assert words.matched == (("07", "seven"), ("3", "three"), ("5", "five"))
    assert chosen(words, ForgetRequest.parse("class:3")).tolist() == [False, True, False]
    assert chosen(words, ForgetRequest.parse("class:three")).tolist() == [False, True, False]
    numbers = aligned(data, tuple(map(str, reversed(range(10)))), "m")
    assert [numbers.classes[i] for i in numbers.samples.labels.tolist()] == ["7", "3", "5"]
    with pytest.raises(BadRequest, match="class '3' is none"):  # never the first of them by its order
        aligned(data, ("7", "5", "1"), "m")


def test_classes_that_are_only_counted() -> None:
    counted = from_arrays({key: value for key, value in arrays().items() if key != "classes"})
    assert counted.counted
    named = aligned(counted, ("cat", "dog", "owl", "yak"), "m")
    assert (named.samples.labels.tolist(), named.matched[0]) == ([0, 1, 2, 0, 1, 2], ("0", "cat"))
    assert chosen(named, ForgetRequest.parse("class:1")).tolist() == [False, True, False] * 2
    assert aligned(counted, ("0", "1", "2"), "m").samples.labels.tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(BadRequest, match=r"class 0 may be the label called '0' of m, or its label number 0, '2'"):
        aligned(counted, ("2", "1", "0"), "m")
    with pytest.raises(BadRequest, match="class 2 is none of the 2 classes of m, which are counted from 0"):
        aligned(counted, ("cat", "dog"), "m")
    high = from_arrays({"images": arrays(3)["images"], "labels": np.array([3, 5, 7])})
    assert aligned(high, ("7", "5", "3"), "m").samples.labels.tolist() == [2, 1, 0]
    with pytest.raises(BadRequest, match=r"3 labels .* out of range, first 4000000"):
        from_arrays({"images": arrays(3)["images"], "labels": np.array([4_000_000] * 3)})


def test_one_output_takes_numbers_as_values() -> None:
    ages = from_arrays({"images": arrays(2)["images"], "labels": np.array([31, 64])})
    values = aligned(ages, ("0",), "m")
    assert values.samples.labels.dtype == torch.float32
    assert (values.samples.labels.tolist(), values.classes) == ([31.0, 64.0], ())
    with pytest.raises(BadRequest, match=r"have classes .cat, dog, owl., and the model predicts a value"):
        aligned(from_arrays(arrays()), ("0",), "m")


def test_a_class_whose_name_holds_commas() -> None:
    data = from_arrays(arrays() | {"classes": np.array(["tench, Tinca tinca", "dog", "owl"])})
    for text in ("class:tench, Tinca tinca", "class:tench", "class:Tinca_Tinca", 'class:"tench, Tinca tinca"'):
        assert chosen(data, ForgetRequest.parse(text)).tolist() == [True, False, False] * 2, text
        assert resolved(data, ForgetRequest.parse(text)).items == ("tench, Tinca tinca",)
    assert resolved(data, ForgetRequest.parse("class:dog,tench, Tinca tinca")).items == ("dog", "tench, Tinca tinca")
    both = from_arrays(arrays() | {"classes": np.array(["dog, owl", "dog", "owl"])})
    with pytest.raises(BadRequest, match=r"'dog, owl' may mean one name, or each of 'dog', 'owl'"):
        chosen(both, ForgetRequest.parse("class:dog,owl"))
    twins = from_arrays(arrays() | {"classes": np.array(["crane", "crane", "owl"])})
    with pytest.raises(BadRequest, match=r"class:crane may mean 'crane' \(number 0\) or 'crane' \(number 1\)"):
        chosen(twins, ForgetRequest.parse("class:crane"))


def test_names_that_look_equal_are_equal() -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    data = from_arrays(arrays() | {"classes": np.array([apart, "dog", "owl"])})
    assert chosen(data, ForgetRequest.parse(f"class:{composed}")).sum() == 2
    assert aligned(data, (composed, "dog", "owl"), "m").classes[0] == composed


# -- forget requests -------------------------------------------------------------------------------------


def test_requests_are_parsed(tmp_path: Path) -> None:
    assert ForgetRequest.parse("class:cat, dog") == ForgetRequest(kind="class", items=("cat", "dog"))
    assert ForgetRequest.parse("identity:s7").plain() == {"kind": "identity", "items": ["s7"]}
    for text in ("3\n5\n", "index,why\n3,wrong\n5,wrong\n", "why,path\nwrong,3\nwrong,5\n", "\ufeff3\r\n\r\n5\r\n3"):
        (tmp_path / "list.csv").write_text(text, encoding="utf-8")
        assert ForgetRequest.parse(f"samples:{tmp_path / 'list.csv'}").items == ("3", "5")


@pytest.mark.parametrize("text", ["cat", "class", "style:neon", "class:", "class: ,", "identity:", "class:cat,cat"])
def test_senseless_requests_are_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        ForgetRequest.parse(text)


def test_lists_that_are_missing_or_empty_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot be read"):
        ForgetRequest.parse(f"samples:{tmp_path / 'none.csv'}")
    (tmp_path / "empty.csv").write_text("path\n")
    with pytest.raises(BadRequest, match="is empty"):
        ForgetRequest.parse(f"samples:{tmp_path / 'empty.csv'}")


def test_splits(folder: Path) -> None:
    data = read(folder)
    cats = split(data, ForgetRequest.parse("class:cat"))
    assert set(cats["forget"].labels.tolist()) == {0}
    assert set(cats["retain"].labels.tolist()) == {1, 2}
    both = split(data, ForgetRequest.parse("class:cat,dog"))
    assert len(both["retain"]) == 2
    bob = split(data, ForgetRequest.parse("identity:bob"))
    assert set(bob["forget"].columns["identity"]) == {"bob"}
    assert set(bob["forget"].labels.tolist()) == {0, 1}
    named = split(data, ForgetRequest(kind="samples", items=("train/owl/ann/1.png", "0")))
    assert named["forget"].names == ("train/cat/ann/0.png", "train/owl/ann/1.png")


@pytest.mark.parametrize(
    ("request_text", "words"),
    [
        ("class:cow", "no class 'cow'.* Did you mean 'owl'.* Known: cat, dog, owl"),
        ("identity:s9", "no identity 's9'.* Known: s1, s2, s3"),
        ("class:cat,dog,owl", "would forget all 6 samples"),
        ("class:yak", "No sample of the data belongs to yak"),
    ],
)
def test_requests_that_do_not_fit_the_data(request_text: str, words: str) -> None:
    data = from_arrays(arrays() | {"classes": np.array(["cat", "dog", "owl"])})
    if request_text == "class:yak":
        data = from_arrays(arrays() | {"classes": np.array(["cat", "dog", "owl", "yak"])})
    with pytest.raises(BadRequest, match=words):
        split(data, ForgetRequest.parse(request_text))


def test_unknown_samples_and_missing_identities() -> None:
    data = from_arrays({key: value for key, value in arrays().items() if key != "identity"})
    with pytest.raises(BadRequest, match="2 of 3 samples to forget are not in the data, first '6'"):
        split(data, ForgetRequest(kind="samples", items=("1", "6", "x.png")))
    with pytest.raises(BadRequest, match="do not say whom"):
        split(data, ForgetRequest.parse("identity:s1"))


def test_a_record_depends_on_the_content_alone() -> None:
    data, request = from_arrays(arrays()), ForgetRequest.parse("class:cat,dog")
    mark = record(data, request)
    assert (mark["samples"], mark["of"], mark["items"]) == (4, 6, ["cat", "dog"])
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    turned = Dataset(samples=data.samples[order], classes=data.classes)
    assert record(turned, ForgetRequest.parse("class:dog,cat")) == {**mark, "items": ["dog", "cat"]}
    data.samples.images[0, 0, 0, 0] += 1
    assert record(data, request)["content"] != mark["content"]
    assert record(data, request)["request"] == mark["request"]


def test_a_random_share_is_drawn_by_its_seed() -> None:
    data = from_arrays(arrays())
    assert len(drawn(data, 0.5).items) == 3
    assert drawn(data, 0.5, seed=1) == drawn(data, 0.5, seed=1)
    assert len({drawn(data, 0.5, seed=s).items for s in range(9)}) > 1
    with pytest.raises(BadRequest, match="between 0 and 1"):
        drawn(data, 1.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5, unique=True))
def test_a_split_is_a_partition(rows: list[int]) -> None:
    data = from_arrays(arrays())
    request = ForgetRequest(kind="samples", items=tuple(map(str, rows)))
    parts = split(data, request)
    assert sorted(parts["forget"].names + parts["retain"].names) == sorted(data.samples.names)
    assert parts["forget"].names == tuple(str(r) for r in sorted(rows))
    assert int(chosen(data, request).sum()) == len(rows)
