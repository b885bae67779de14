"""Pictures of every depth, folders of every kind: right, or refused, or named among what was left out."""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.data.arrays import from_arrays
from palimpsest.data.decode import Unreadable, decoded
from palimpsest.data.folders import MASKS
from palimpsest.data.forget import ForgetRequest, repeated, split, told
from palimpsest.data.read import read


def png(colour: int = 200, size: tuple[int, int] = (8, 8)) -> bytes:
    return encoded(Image.new("RGB", size, (colour, 30, 30)))


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = BytesIO()
    picture.save(out, format=kind, **options)
    return out.getvalue()


def tree(root: Path, names: str) -> Path:
    """Pictures, each of its own colour, at these paths."""
    for n, name in enumerate(names.split()):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(n))
    return root


# -- decoding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_by_their_range(kind: str) -> None:
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    want = np.rint(values / 65535 * 255).astype(np.uint8)
    assert np.array_equal(decoded(encoded(Image.fromarray(values), kind)).colours, np.stack([want] * 3, -1))


@pytest.mark.parametrize(("maximum", "form"), [(255, "B"), (4095, ">H"), (65535, ">H")])
def test_grey_maps_are_scaled_by_their_maximum(maximum: int, form: str) -> None:
    values = [0, maximum // 3, maximum // 2, maximum]
    raw = b"P5 4 1 %d\n" % maximum + b"".join(struct.pack(form, v) for v in values)
    assert np.abs(decoded(raw).colours[0, :, 0] - np.array(values) / maximum * 255).max() <= 0.51


def tiff(values: np.ndarray, bits: int, *, photometric: int = 1, sample: int = 1) -> bytes:
    """A grey TIFF file, little-endian, without compression."""
    data = values.tobytes()
    tags = {256: values.shape[1], 257: values.shape[0], 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: values.shape[0], 279: len(data), 339: sample}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def test_other_depths_of_tiff() -> None:
    deep = np.array([[0, 2**31, 2**32 - 1]], dtype="<u4")
    assert decoded(tiff(deep, 32)).colours[0, :, 0].tolist() == [0, 128, 255]
    twelve = np.frombuffer(bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x00]), np.uint8).reshape(1, 6)  # 0, 2048, 4095, 0
    packed = tiff(twelve, 12).replace(struct.pack("<HHII", 256, 3, 1, 6), struct.pack("<HHII", 256, 3, 1, 4))
    assert decoded(packed).colours[0, 2:, 0].tolist() == [255, 0]
    white = np.array([[0, 65535]], dtype="<u2")
    assert decoded(tiff(white, 16, photometric=0)).colours[0, :, 0].tolist() == [255, 0]
    with pytest.raises(Unreadable, match="signed integers"):
        decoded(tiff(np.array([[-5, 5]], dtype="<i2"), 16, sample=2))


def test_floating_point_pictures_lie_in_zero_to_one() -> None:
    values = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    want = np.rint(values.astype(np.float64) * 255)
    assert np.array_equal(decoded(encoded(Image.fromarray(values), "TIFF")).colours[..., 1], want)
    for bad in (values * 255, values - 0.5, values * np.float32("nan")):
        with pytest.raises(Unreadable, match="floating-point numbers from"):
            decoded(encoded(Image.fromarray(bad), "TIFF"))


def test_arrays_of_other_depths() -> None:
    deep = np.array([0, 257, 65535], np.uint16)[:, None, None].repeat(4, 1).repeat(4, 2)
    labels = np.array([0, 1, 0])
    assert from_arrays({"images": deep, "labels": labels}).samples.images[:, 0, 0, 0].tolist() == [0, 1, 255]
    real = (deep / 65535).astype(np.float32)
    assert from_arrays({"images": real, "labels": labels}).samples.images[:, 2, 3, 3].tolist() == [0, 1, 255]


def plain_png(width: int, height: int, bits: int, colour: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(data)) if data else chunk(b"IDAT", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_a_channel(colour: int, channels: int) -> None:
    values = np.linspace(0, 65535, 8 * channels).astype(">u2").reshape(8, channels)
    values[:, -1] = 65535 if channels % 2 == 0 else values[:, -1]  # opaque where there is an alpha
    read = decoded(plain_png(8, 1, 16, colour, b"\0" + values.tobytes())).colours[0].astype(float)
    want = values[:, :3] if channels > 2 else np.repeat(values[:, :1], 3, 1)
    assert np.abs(read - want / 65535 * 255).max() <= 1


def bomb() -> bytes:
    return plain_png(60000, 60000, 8, 0, b"")


def odd_exif() -> bytes:
    """A JPEG whose EXIF says that its orientation is a text behind the end of the file."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x09\0\xff\xff\xff"
    return encoded(Image.new("RGB", (8, 8)), "JPEG", exif=exif)


def test_whatever_a_decoder_raises_is_counted_and_named(tmp_path: Path) -> None:
    tree(tmp_path, "cat/0.png cat/1.png dog/0.png dog/1.png dog/2.png")
    (tmp_path / "cat" / "0.png").write_bytes(bomb())
    (tmp_path / "dog" / "0.png").write_bytes(b"no picture")
    (tmp_path / "dog" / "1.png").write_bytes(encoded(Image.new("RGB", (8, 8)), "JPEG")[:300])
    (tmp_path / "cat" / "2.jpg").write_bytes(odd_exif())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Damaged, match=r"[3-4] of 6 pictures.*cat/0\.png.*--skip-unreadable"):
            read(tmp_path)
        first, second = (read(tmp_path, skip_unreadable=True) for _ in range(2))
    assert first.skipped == second.skipped
    assert "cat/0.png (Image size (3600000000 pixels) exceeds limit" in first.skipped[0]
    assert "dog/0.png (no picture that can be decoded)" in first.skipped
    assert not any("0x" in name for name in first.skipped)
    assert len(first.samples) + len(first.skipped) == 6
    # The odd orientation is either refused or told; it never passes in silence.
    assert any(name.startswith("cat/2.jpg") for name in (*first.skipped, *first.warned))


@pytest.mark.parametrize("error", [struct.error("unpack"), KeyError(274), ZeroDivisionError(), TypeError("none")])
def test_errors_of_the_orientation_too(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Image.Image) -> Image.Image:
        raise error

    monkeypatch.setattr(ImageOps, "exif_transpose", fails)
    tree(tmp_path, "cat/0.png")
    with pytest.raises(Damaged, match=rf"1 of 1 pictures.*0\.png \({type(error).__name__.split('.')[-1]}"):
        read(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.binary(min_size=1, max_size=8), st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "WEBP"]))
def test_broken_files_are_pictures_or_unreadable(start: int, junk: bytes, kind: str) -> None:
    whole = bytearray(encoded(Image.new("RGB", (8, 8), (1, 2, 3)), kind))
    whole[start : start + len(junk)] = junk
    try:
        why, shape = "", decoded(bytes(whole), 8).colours.shape
    except Unreadable as e:
        why, shape = str(e), (8, 8, 3)
        why = why or "0x"
    assert shape == (8, 8, 3)
    assert "0x" not in why


ODD = {
    "images": [np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4), np.uint8), np.array(3), np.zeros((2, 3, 4, 4), "c8")],
    "labels": [np.array([0, 1]), np.array(["a", "b"]), np.array(1), np.array([[0], [1]]), np.array([0j, 1])],
    "names": [np.array(["x", "y"]), np.array([b"\xff", b"y"]), np.array("x"), np.array([1, 2, 3])],
    "identity": [np.array([1, 2]), np.array(["x", ""]), np.zeros((2, 2)), np.array([], str)],
    "classes": [np.array(["a", "b"]), np.array("a"), np.array([b"\xff", b"b"]), np.array([], str)],
    "masks": [np.zeros((2, 4, 4), np.uint8), np.zeros(2), np.zeros((1, 4, 4)), np.full((2, 4, 4), 3.0)],
    "captions": [np.array(["x", "y"]), np.array(["x"]), np.array(1)],
    "more": [np.array(["x", "y"]), np.array([1.5, 2]), np.array(["1", "2"], "datetime64[D]"), np.array(1)],
}


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in ODD.items()}))
def test_odd_arrays_are_read_or_refused_in_words(arrays: dict[str, np.ndarray]) -> None:
    try:
        data = from_arrays(arrays)
    except BadRequest:
        return
    assert len(data.samples) == 2
    assert len(data.samples.labels) == 2


# -- which files ------------------------------------------------------------------------------------------


def test_links_are_followed_and_hidden_files_are_not_read(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "cat/0.png cat/.ipynb_checkpoints/0-checkpoint.png dog/0.png dog/a/.b.png")
    tree(root, "cat/1.jfif dog/2 cat/@eaDir/0.png __MACOSX/cat/._0.png")
    tree(tmp_path / "elsewhere", "owl/5.png more/6.png")
    (root / "owl").symlink_to(tmp_path / "elsewhere" / "owl")
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "gone.png").symlink_to(root / "nothing.png")
    (root / "dog" / "notes.txt").write_text("mine")
    (root / "loose.png").write_bytes(png())
    data = read(root)
    assert data.samples.names == ("cat/0.png", "cat/1.jfif", "cat/more/6.png", "dog/0.png", "dog/2", "owl/5.png")
    assert data.classes == ("cat", "dog", "owl")
    assert sorted(data.left_out) == [
        "__MACOSX (hidden)",
        "cat/.ipynb_checkpoints (hidden)",
        "cat/@eaDir (hidden)",
        "cat/up (a link to a folder that it lies in)",
        "dog/a/.b.png (hidden)",
        "dog/gone.png (a link to nothing)",
        "dog/notes.txt (no picture)",
        "loose.png (lies outside the folders of the classes)",
    ]
    assert data.told()[-1].startswith("left out 8: ")


def test_every_file_is_read_or_named(tmp_path: Path) -> None:
    tree(tmp_path, "cat/0.png cat/x/1.JPG dog/2.webp dog/.3.png dog/4.xyz .git/5.png")
    (tmp_path / "dog" / "4.xyz").write_text("P3 is the third point")
    data = read(tmp_path)
    assert len(data.samples) + len(data.left_out) == 6


def test_copies_of_what_is_forgotten_are_told() -> None:
    images = np.arange(4, dtype=np.uint8)[[0, 1, 1, 3], None, None].repeat(8, 1).repeat(8, 2)
    data = from_arrays({"images": images, "labels": np.array([0, 0, 1, 1])})
    request = ForgetRequest.parse("class:0")
    assert repeated(split(data, request)) == [("1", "2")]
    assert told(data, request) == [
        "asked    class 0: 2 pictures to forget, 2 to keep",
        "copies   1 retained pictures equal one to forget, pixel by pixel: 2 is 1",
    ]


# -- which folders ----------------------------------------------------------------------------------------


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    data = read(tree(tmp_path, "train/0.png car/0.png car/1.png boat/0.png"))
    assert (data.classes, len(data.samples)) == (("boat", "car", "train"), 4)


def test_two_readings_of_folders_are_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", "train/ann/0.png car/bob/0.png")
    with pytest.raises(BadRequest, match=r"two ways: parts of the data \(train\), or classes \(car, train\)"):
        read(root)
    assert read(root, split="").classes == ("car", "train")
    assert read(root / "train").classes == ("ann",)
    flat = tree(tmp_path / "b", "train/0.png test/0.png")
    with pytest.raises(BadRequest, match="two ways"):
        read(flat)
    assert read(flat, labelled=False).samples.names == ("train/0.png",)


def test_a_part_that_is_not_there_is_told(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/cat/0.png test/cat/0.png")
    with pytest.raises(BadRequest, match="no part called 'valid'; it has test, train"):
        read(root, split="valid")
    assert read(root, split="test").samples.names == ("test/cat/0.png",)


# -- what stands beside pictures --------------------------------------------------------------------------


def test_metadata_captions_and_masks(tmp_path: Path) -> None:
    root = tree(tmp_path, "0.png 1.png masks/0.png masks/1.png")
    (root / "masks" / "1.png").write_bytes(encoded(Image.new("L", (8, 8), 255)))
    (root / "masks" / "0.png").write_bytes(encoded(Image.new("RGB", (8, 8), (51, 255, 255))))
    (root / "metadata.csv").write_text('file_name,text,camera,identity\n0.png,"a dog, asleep",x100,7\n1.png,,,ann\n')
    (root / "1.txt").write_text("a red dog\n")
    data = read(root, labelled=False).samples
    assert data.names == ("0.png", "1.png")
    assert data.captions == ("a dog, asleep", "a red dog")
    assert data.columns == {"camera": ("x100", ""), "identity": ("7", "ann")}
    assert data.masks is not None
    assert np.allclose(data.masks[:, 0, 0, 0], [51 / 255, 1])
    assert not len(data.labels)
    with pytest.raises(BadRequest, match="have no classes"):
        read(root)
    (root / "masks" / "1.png").unlink()
    with pytest.raises(BadRequest, match=r"1 of 2 pictures .* have no mask, first 1"):
        read(root, labelled=False)


def test_lines_of_json_with_labels(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/0.png 1.png")
    rows = [{"file_name": "a/0.png", "label": 2, "tags": ["x"]}, {"file_name": "./1.png", "label": 0, "identity": 7}]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "0.png").write_bytes((root / "a" / "0.png").read_bytes())
    (root / "a" / "0.png").unlink()
    with pytest.raises(BadRequest, match=r"1 pictures are not there .* first a/0.png"):
        read(root)
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)).replace("a/0.png", "0.png"))
    data = read(root)
    assert (data.samples.labels.tolist(), data.counted) == ([2, 0], True)
    assert data.samples.columns == {"tags": ('["x"]', ""), "identity": ("", "s7")}
    (root / "metadata.jsonl").write_text('{"file_name": "0.png"\n')
    with pytest.raises(Damaged, match="line 1 is not"):
        read(root)


def test_masks_may_be_a_class(tmp_path: Path) -> None:
    root = tree(tmp_path, f"{MASKS}/0.png hats/1.png")
    assert read(root).classes == ("hats", MASKS)
    tree(root, f"{MASKS}/hats/1.png")
    with pytest.raises(BadRequest, match=r"1 of 2 files of .*masks are called like a picture"):
        read(root)
    (root / MASKS / "0.png").unlink()
    assert read(root).samples.masks is not None


# -- parquet ----------------------------------------------------------------------------------------------


def table(path: Path, rows: list[dict[str, object]]) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


def test_layouts_of_the_hub(tmp_path: Path) -> None:
    row = {"image": {"bytes": png(), "path": None}, "label": 0}
    table(tmp_path / "default" / "train" / "0000.parquet", [row] * 2)
    table(tmp_path / "default" / "train" / "0001.parquet", [row])
    table(tmp_path / "default" / "test" / "0000.parquet", [row])
    assert len(read(tmp_path).samples) == 3
    assert len(read(tmp_path, split="test").samples) == 1
    with pytest.raises(BadRequest, match="no parquet files of the split 'valid'; it has test, train"):
        read(tmp_path, split="valid")
    table(tmp_path / "small" / "train-00000-of-00001.parquet", [row])
    with pytest.raises(BadRequest, match=r"several data sets .*default.*small"):
        read(tmp_path)
    assert len(read(tmp_path / "small").samples) == 1


def test_columns_of_tables(tmp_path: Path) -> None:
    row = {"image": png(), "label": "yak", "camera": "x100", "text": "a yak"}
    data = read(table(tmp_path / "a.parquet", [row, {**row, "label": "cat", "camera": None}]))
    assert (data.classes, data.samples.labels.tolist(), data.counted) == (("cat", "yak"), [1, 0], False)
    assert data.samples.columns == {"camera": ("x100", "")}
    assert data.samples.captions == ("a yak", "a yak")
    with pytest.raises(BadRequest, match=r"1 of 2 pictures of .* have no label, first 1"):
        read(table(tmp_path / "b.parquet", [row, {**row, "label": None}]))
    with pytest.raises(BadRequest, match="Data with several labels a picture are not supported"):
        read(table(tmp_path / "c.parquet", [{**row, "label": [1, 0]}]))
    table(tmp_path / "d" / "train-0.parquet", [row])
    table(tmp_path / "d" / "train-1.parquet", [{"image": png()}])
    with pytest.raises(BadRequest, match=r"train-1\.parquet has no column 'label' .nor labels or fine_label."):
        read(tmp_path / "d")
    assert not len(read(table(tmp_path / "e.parquet", [{"image": png()}]), labelled=False).samples.labels)
