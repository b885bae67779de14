"""Pictures of any kind, changed in one place and written again: everything else stays, to the bit where it can."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from palimpsest.data.decode import Unreadable, decoded
from palimpsest.data.marking import SOFTWARE, SOURCE_TYPE, Mark, source_type_of
from palimpsest.data.originals import original

MARK = Mark("palimpsest 9")
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
W, H = 40, 24


def colours(mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize((W, H), Image.Resampling.BICUBIC)
    if mode == "I;16":
        grey = np.asarray(smooth.convert("L")).astype(np.uint16) * 257 + 3
        return Image.frombytes("I;16", (W, H), grey.tobytes())
    if mode == "RGBA":
        smooth.putalpha(Image.fromarray(rng.integers(0, 256, (H, W), dtype=np.uint8)))
        return smooth
    if mode == "LA":
        return Image.merge("LA", (smooth.convert("L"), Image.fromarray(rng.integers(0, 256, (H, W), dtype=np.uint8))))
    return smooth.convert(mode)


def encoded(picture: Image.Image, kind: str, **how: Any) -> bytes:
    out = BytesIO()
    picture.save(out, format=kind, **how)
    return out.getvalue()


def exif(turn: int = 1) -> Image.Exif:
    said = Image.Exif()
    said[0x0112], said[0x010F], said[SOFTWARE] = turn, "A camera", "Another program"
    return said


def change(h: int, w: int) -> np.ndarray:
    """A brighter, redder spot."""
    spot = np.zeros((h, w, 3))
    spot[4:12, 6:18] = (0.25, 0.1, -0.1)
    return spot


KINDS: list[tuple[str, str, dict[str, Any]]] = [
    ("PNG", "RGB", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "L", {}),
    ("PNG", "LA", {}),
    ("PNG", "P", {}),
    ("PNG", "1", {}),
    ("PNG", "I;16", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "CMYK", {}),
    ("TIFF", "I;16", {}),
    ("BMP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True, "exact": True}),
]


@pytest.mark.parametrize(("kind", "mode", "how"), KINDS, ids=[f"{k}-{m}" for k, m, _ in KINDS])
def test_lossless_files_stay_bit_for_bit_outside_the_change(kind: str, mode: str, how: dict[str, Any]) -> None:
    before = original(encoded(colours(mode), kind, **how))
    assert before.lossless
    spot = change(H, W)
    after = original(before.rewritten(spot, MARK))
    assert (after.format, after.stored.size) == (kind, (W, H))
    if not before.told:
        assert after.stored.mode == mode
        one, two = (np.asarray(p.stored).reshape(H, W, -1) for p in (before, after))
        assert np.array_equal(one[spot[..., 0] == 0], two[spot[..., 0] == 0])
    assert np.array_equal(before.colours[spot[..., 0] == 0], after.colours[spot[..., 0] == 0])
    inside = spot[..., 0] > 0
    apart = after.colours.astype(float) - before.colours
    if mode in ("RGB", "RGBA", "P"):
        expect = np.clip(np.rint(before.colours + 255 * spot), 0, 255) - before.colours
        assert np.array_equal(apart[inside], expect[inside])
    else:
        assert apart[inside].mean() > 5
    untouched = original(before.rewritten(np.zeros((H, W, 3)), None))
    assert np.array_equal(untouched.colours, before.colours)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_turned_picture_is_changed_where_it_is_seen_and_stays_turned(turn: int) -> None:
    before = original(encoded(colours(), "PNG", exif=exif(turn)))
    h, w, _ = before.colours.shape
    assert (h, w) == ((W, H) if turn > 4 else (H, W))
    spot = change(h, w)
    after = original(before.rewritten(spot, MARK))
    assert after.stored.getexif()[0x0112] == turn
    expect = np.clip(np.rint(before.colours + 255 * spot), 0, 255)
    assert np.array_equal(after.colours, expect)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_metadata_stay_and_the_mark_is_added(kind: str) -> None:
    how = {"exif": exif(), "icc_profile": ICC, "dpi": (300, 300)}
    before = original(encoded(colours(), kind, **how))
    after = original(before.rewritten(change(H, W), MARK)).stored
    said = after.getexif()
    assert (said[0x010F], said[SOFTWARE]) == ("A camera", "palimpsest 9")
    assert after.info["icc_profile"] == ICC
    assert source_type_of(after) == SOURCE_TYPE
    bare = original(before.rewritten(change(H, W), None)).stored
    assert bare.getexif()[SOFTWARE] == "Another program"
    assert source_type_of(bare) == ""
    again = original(original(before.rewritten(change(H, W), MARK)).rewritten(change(H, W), MARK)).stored
    assert source_type_of(again) == SOURCE_TYPE
    if kind in ("JPEG", "PNG"):
        assert round(float(after.info["dpi"][0])) == 300


def test_other_xmp_stays() -> None:
    packet = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="mine"/>'
        b"</rdf:RDF></x:xmpmeta>"
    )
    before = original(encoded(colours(), "WEBP", xmp=packet))
    after = original(before.rewritten(change(H, W), MARK)).stored
    assert b'dc:format="mine"' in after.info["xmp"]
    assert source_type_of(after) == SOURCE_TYPE


def test_a_jpeg_keeps_its_tables_and_loses_little() -> None:
    before = original(encoded(colours(), "JPEG", quality=83, subsampling=0, progressive=True))
    spot = change(H, W)
    after = original(before.rewritten(spot, MARK))
    assert not before.lossless
    assert after.stored.quantization == before.stored.quantization
    assert after.stored.info.get("progressive")
    far = np.abs(after.colours.astype(int) - before.colours)[:, 34:]
    assert far.mean() < 0.5, "blocks that did not change are written nearly as they were"


def test_a_cmyk_jpeg_keeps_its_inks() -> None:
    before = original(encoded(colours("CMYK"), "JPEG", quality=95))
    after = original(before.rewritten(change(H, W), MARK))
    assert after.stored.mode == "CMYK"
    assert np.abs(after.colours.astype(int) - before.colours)[:, 34:].mean() < 1


def test_transparency_of_a_palette_stays() -> None:
    palette = colours("P")
    before = original(encoded(palette, "PNG", transparency=int(np.asarray(palette)[0, 0])))
    after = original(before.rewritten(change(H, W), MARK))
    assert after.stored.mode == "RGBA"
    assert after.stored.getpixel((0, 0))[3] == 0
    assert before.told == ("a palette became colours of 8 bits",)


def test_what_cannot_be_written_is_refused_in_words() -> None:
    with pytest.raises(Unreadable, match="GIF is not written; save it as PNG"):
        original(encoded(colours("P"), "GIF"))
    with pytest.raises(Unreadable, match="it holds 2 pictures"):
        original(encoded(colours(), "TIFF", save_all=True, append_images=[colours()]))
    with pytest.raises(Unreadable):
        original(encoded(colours(), "PNG")[:60])


def test_decoded_and_original_see_the_same() -> None:
    for kind, mode, how in KINDS:
        data = encoded(colours(mode), kind, **how)
        assert np.array_equal(decoded(data).colours, original(data).colours)
