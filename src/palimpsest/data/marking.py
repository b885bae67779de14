"""What an edited picture's file says of itself: the program, and that a model made a part of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

SOFTWARE = 0x0131
XMP_TAG = 700  # of TIFF
_ABOUT = (269, 270, 271, 272, 274, SOFTWARE, 306, 315, 316, 337, 33432)
"""Tags of a TIFF in words: document, description, camera, orientation, program, date, artist, host, inks, copyright."""
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
_NAMESPACE = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_HEAD = b"http://ns.adobe.com/xap/1.0/\x00"  # of a JPEG's segment that holds XMP
_BLOCK = (
    f'<rdf:Description xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" rdf:about="" '
    f'xmlns:Iptc4xmpExt="{_NAMESPACE}"><Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>'
    "</rdf:Description>"
)
_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{}</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


@dataclass(frozen=True)
class Mark:
    """Software: the program's name and version, as EXIF has it."""

    software: str


def marked(stored: Any, mark: Mark | None) -> dict[str, Any]:
    """What Pillow is told to write: the file's own EXIF, XMP and texts, with the mark where one is given.

    A preview inside the EXIF data, which would show the picture before the edit, is left out. BMP files hold nothing.
    """
    from PIL import PngImagePlugin

    kind = stored.format
    if kind == "BMP":
        return {}
    exif, xmp = _exif_of(stored), _xmp_of(stored)
    if mark is not None:
        exif[SOFTWARE] = mark.software
        xmp = _with_source_type(xmp)
    said: dict[str, Any] = {"exif": exif} if len(exif) else {}
    if kind == "PNG":
        texts = PngImagePlugin.PngInfo()
        for name, value in getattr(stored, "text", {}).items():
            if name != "XML:com.adobe.xmp":
                texts.add_itxt(name, str(value)) if not str(value).isascii() else texts.add_text(name, str(value))
        if xmp:
            texts.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
        return {**said, "pnginfo": texts}
    if not xmp:
        return said
    if kind == "JPEG":
        held = _HEAD + xmp
        fits = len(held) + 2 < 2**16
        return {**said, "extra": b"\xff\xe1" + (len(held) + 2).to_bytes(2, "big") + held} if fits else said
    if kind == "WEBP":
        return {**said, "xmp": xmp}
    exif[XMP_TAG] = xmp
    return {"exif": exif}


def _exif_of(stored: Any) -> Any:
    """A copy of the file's EXIF data. Of a TIFF's, what says something about the picture and not how it is stored."""
    from PIL import Image

    held, copy = stored.getexif(), Image.Exif()
    copy.load(held.tobytes())
    if stored.format != "TIFF":
        return copy
    copy.clear()
    for tag in _ABOUT:
        if tag in held:
            copy[tag] = held[tag]
    return copy


def source_type_of(stored: Any) -> str:
    """The digital source type that a file's XMP names; "" where it names none."""
    found = re.search(rb"DigitalSourceType(?:>|=\")([^<\"]*)", _xmp_of(stored))
    return found[1].decode("utf-8", "replace") if found else ""


def _xmp_of(stored: Any) -> bytes:
    held = stored.info.get("xmp") or stored.info.get("XML:com.adobe.xmp") or b""
    if stored.format == "TIFF":
        held = stored.tag_v2.get(XMP_TAG, b"")
    return held.encode() if isinstance(held, str) else bytes(held)


def _with_source_type(xmp: bytes) -> bytes:
    """The packet with the source type that holds now, in place of an older one."""
    value = SOURCE_TYPE.encode()
    named = re.compile(rb"(DigitalSourceType(?:>|=\"))[^<\"]*")
    if named.search(xmp):
        return named.sub(lambda m: m[1] + value, xmp)
    at = xmp.rfind(b"</rdf:RDF>")
    if at < 0:
        return _PACKET.format(_BLOCK).encode()
    return xmp[:at] + _BLOCK.encode() + xmp[at:]
