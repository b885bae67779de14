"""A user's references: read from whatever cameras and editors wrote, or refused in words."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.pictures import Pictures
from palimpsest.data.references import captioned, references
from palimpsest.run.references import references as of_word
from palimpsest.worlds.concepts import WORLDS, Words
from palimpsest.worlds.references import references as drawn


def halves(size: tuple[int, int] = (24, 16), left: int = 0, right: int = 255) -> Image.Image:
    """A picture whose left and right halves have two greys."""
    values = np.full((size[1], size[0], 3), right, np.uint8)
    values[:, : size[0] // 2] = left
    return Image.fromarray(values)


def plain(n: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new("RGB", size, (n, 40, 60))


def folder(root: Path, **pictures: Image.Image) -> Path:
    for name, picture in pictures.items():
        file = root / f"{name.replace('__', '/')}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    return root


def test_sizes_modes_and_turns_become_one(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: left is up
    halves().save(tmp_path / "a.jpg", exif=exif, quality=95)
    halves((40, 40)).convert("P").save(tmp_path / "b.png")
    halves((17, 31)).convert("L").save(tmp_path / "c.png")
    Image.fromarray(np.full((20, 20), 65535, np.uint16)).save(tmp_path / "d.png")
    data = references(tmp_path, size=8)
    assert data.samples.images.shape == (4, 3, 8, 8)
    assert data.samples.names == ("a.jpg", "b.png", "c.png", "d.png")
    turned = data.samples.images[0, 0]
    assert int(turned[:3].max()) < 30
    assert int(turned[5:].min()) > 225
    assert int(data.samples.images[3].min()) == 255
    assert data.samples.masks is None
    assert data.samples.captions == ()
    assert references(tmp_path, size=20).warned == (
        "a.jpg (16x24, enlarged to 20x20)",
        "c.png (17x31, enlarged to 20x20)",
    )


def test_colour_profiles_are_followed(tmp_path: Path) -> None:
    picture = Image.new("LAB", (8, 8), (128, 200, 128)).convert("LAB")
    shown_as = ImageCms.profileToProfile(
        picture, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert shown_as is not None
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    shown_as.save(tmp_path / "a.png", icc_profile=profile)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "b.png", icc_profile=b"no profile")
    data = references(tmp_path, size=8)
    assert np.abs(data.samples.images[0, :, 0, 0].int().numpy() - np.array(shown_as.getpixel((0, 0)))).max() <= 2
    assert "b.png (its colour profile cannot be used" in data.warned[0]
    assert data.samples.images[1, 0, 0, 0] == 9


def test_a_profile_with_swapped_channels_changes_colours(tmp_path: Path) -> None:
    """An sRGB profile whose red and green primaries are exchanged turns red into green."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    tags = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = tags[b"rXYZ"] + 4, tags[b"gXYZ"] + 4
    profile[red : red + 8], profile[green : green + 8] = profile[green : green + 8], profile[red : red + 8]
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "a.png", icc_profile=bytes(profile))
    colour = references(tmp_path, size=8).samples.images[0, :, 0, 0].tolist()
    assert colour[1] > 200 > 60 > colour[0]


def test_alpha_is_a_mask_and_what_it_hides_is_not_seen(tmp_path: Path) -> None:
    picture = halves((32, 16), left=10, right=90).convert("RGBA")
    alpha = np.zeros((16, 32), np.uint8)
    alpha[:, 26:] = 255
    alpha[:, 24:26] = 127
    picture.putalpha(Image.fromarray(alpha))
    picture.save(tmp_path / "a.png")
    data = references(tmp_path / "a.png", size=16).samples
    # The square is around what is marked: the picture's right half, and what alpha hides there is white.
    assert data.masks is not None
    assert data.masks[0, 0, 0].tolist() == pytest.approx([0.0] * 8 + [127 / 255] * 2 + [1.0] * 6)
    assert data.images[0, 0, 0].tolist() == [255] * 8 + [173] * 2 + [90] * 6


def test_captions_and_masks_beside_pictures(tmp_path: Path) -> None:
    folder(tmp_path, a=plain(1), b=plain(2), masks__a=plain(0).convert("L"), masks__b=plain(0))
    (tmp_path / "masks" / "a.png").unlink()
    Image.new("RGB", (16, 16), (127, 255, 255)).save(tmp_path / "masks" / "a.webp", lossless=True)
    Image.new("L", (16, 16), 255).save(tmp_path / "masks" / "b.png")
    rows = [{"file_name": "a.png", "text": "a red thing", "camera": "x"}, {"file_name": "b.png"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.txt").write_text("a blue thing\n")
    data = references(tmp_path, size=8).samples
    assert data.captions == ("a red thing", "a blue thing")
    assert data.columns == {"camera": ("x", "")}
    assert data.masks is not None
    assert data.masks.amax((1, 2, 3)).tolist() == pytest.approx([127 / 255, 1])
    # The same through single files.
    files = references([tmp_path / "b.png", tmp_path / "a.png"], size=8).samples
    assert files.captions == ("a blue thing", "a red thing")
    assert files.masks is not None
    assert torch.equal(files.masks, data.masks.flip(0))


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, a=plain(1), b=plain(2), masks__a=plain(255, (8, 16)))
    with pytest.raises(BadRequest, match=r"mask of a\.png is 8x16 and the picture 16x16"):
        references(tmp_path, size=8)
    plain(255).save(tmp_path / "masks" / "a.png")
    with pytest.raises(BadRequest, match=r"1 of 2 pictures .* have no mask, first b\.png"):
        references(tmp_path, size=8)
    plain(0).save(tmp_path / "masks" / "b.png")
    with pytest.raises(BadRequest, match=r"mask of b\.png marks nothing"):
        references(tmp_path, size=8)
    plain(255).save(tmp_path / "masks" / "c.png")
    with pytest.raises(BadRequest, match=r"1 of 3 files of .*masks are called like no picture, first c"):
        references(tmp_path, size=8)


def test_copies_and_broken_files_are_named(tmp_path: Path) -> None:
    folder(tmp_path, a=plain(1), b=plain(1), c=plain(3))
    (tmp_path / "notes.md").write_text("mine")
    data = references(tmp_path, size=8)
    assert data.samples.names == ("a.png", "c.png")
    assert data.left_out == ("notes.md (no picture)", "b.png (equals a.png, pixel by pixel)")
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(Damaged, match=r"1 of 3 pictures .* cannot be read: c\.png .*skip_unreadable"):
        references(tmp_path, size=8)
    with pytest.raises(BadRequest, match=r"All 2 pictures .* are equal"):
        references(tmp_path, size=8, skip_unreadable=True)
    plain(9).save(tmp_path / "d.png")
    assert references(tmp_path, size=8, skip_unreadable=True).skipped[0].startswith("c.png (")


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="There are no pictures at"):
        references(tmp_path / "gone", size=8)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(BadRequest, match=r"holds no pictures.* Passed over: a\.heic \(no picture\)"):
        references(tmp_path, size=8)
    with pytest.raises(BadRequest, match="neither a folder nor a picture"):
        references(tmp_path / "a.heic", size=8)
    with pytest.raises(BadRequest, match="size is 0"):
        references(tmp_path, size=0)


def shown(*captions: str) -> Pictures:
    names = tuple(f"{i}.png" for i in range(max(1, len(captions))))
    return Pictures(images=torch.zeros(len(names), 3, 4, 4, dtype=torch.uint8), names=names, captions=captions)


def test_captions_hold_the_word() -> None:
    said = shown("a <v> on grass", "a dog, asleep", "asleep", "")
    got = captioned(said, "<v>", "auto", like="dog").captions
    assert got == ("a <v> on grass", "a <v>, asleep", "<v>, asleep", "a picture of <v>")
    assert captioned(shown(), "sks", "auto", kind="style").captions == ("a picture in the style of sks",)
    assert captioned(said, "sks", "a photo of {word}, outdoors").captions == ("a photo of sks, outdoors",) * 4
    with pytest.raises(BadRequest, match=r"3 of 4 pictures do not hold the word '<v>': 1\.png, 2\.p.*auto"):
        captioned(said, "<v>", "file")
    assert captioned(shown("<v> there"), "<v>", "file").captions == ("<v> there",)
    with pytest.raises(BadRequest, match=r"auto, file, or a caption with \{word\}"):
        captioned(said, "<v>", "a photo")
    with pytest.raises(BadRequest, match="empty"):
        captioned(said, " ")


def test_a_models_world_is_drawn(tmp_path: Path) -> None:
    host = SimpleNamespace(knows=Words(WORLDS["glyphs"]), default_size=64)
    made = of_word("world:crown", host, "<crown>", n=3, seed=5)
    want = drawn(WORLDS["glyphs"], "crown", 3, "<crown>", torch.Generator().manual_seed(5))
    assert torch.equal(made.samples.images, want.images)
    assert made.samples.captions == want.captions
    with pytest.raises(BadRequest, match="trained on none; give a folder"):
        of_word("world:crown", SimpleNamespace(knows=None, default_size=64), "<crown>")
    folder(tmp_path / "mine", a=plain(1), b=plain(2))
    mine = of_word(str(tmp_path / "mine"), host, "<v>", like="bell")
    assert mine.samples.images.shape == (2, 3, 64, 64)
    assert mine.samples.captions == ("a picture of <v>",) * 2


def test_every_encoder_of_pictures_is_read(tmp_path: Path) -> None:
    for n, kind in enumerate(("JPEG", "WEBP", "TIFF", "BMP", "GIF")):
        out = BytesIO()
        plain(40 * n).save(out, format=kind)
        (tmp_path / f"{kind}.{kind.lower()}").write_bytes(out.getvalue())
    assert len(references(tmp_path, size=8).samples) == 5
