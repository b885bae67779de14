"""What the edit of one picture takes in beside the picture: its words, its mask, its reference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from palimpsest.core.errors import BadRequest
from palimpsest.core.images import ImageEdit
from palimpsest.core.pictures import Pictures
from palimpsest.data.framing import Frame
from palimpsest.data.originals import Original
from palimpsest.data.sources import Found, Masks, References, colours_of
from palimpsest.ops.editing import ASKED, AVOIDED
from palimpsest.run.wording import Captions, Said, Wanted, said_of

REFERENCES = "references"  # as cards call the pictures that a system takes something from


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """What is known of one picture.

    Args:
        said: its prompts; captioned: where the caption is from.
        mask: (height, width) in [0, 1]; None: it may change everywhere.
        reference: the file that its edit takes something from; None where there is none.
    """

    said: Said
    captioned: str
    mask: np.ndarray | None
    reference: bytes | None

    def key(self, settings: Mapping[str, Any], encoded: bytes) -> str:
        """Hash of everything that the edit of a picture (its file) follows from."""
        about = {**settings, "said": asdict(self.said), "picture": hashlib.sha256(encoded).hexdigest()}
        mask = self.mask
        about["mask"] = "" if mask is None else hashlib.sha256(np.packbits(mask >= 0.5).tobytes()).hexdigest()
        if self.reference is not None:
            about["reference"] = hashlib.sha256(self.reference).hexdigest()
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def sources(self, picture: Original, side: int) -> Pictures:
        """The picture as a system takes it, at the model's size."""
        frame = Frame.of(picture.height, picture.width, side)
        return Pictures(
            images=frame.onto(picture.colours),
            names=("",),
            captions=(self.said.said,),
            masks=None if self.mask is None else frame.mask_onto(self.mask),
            columns={ASKED: (self.said.asked,), AVOIDED: (self.said.avoided,)},
        )

    def data(self, side: int) -> dict[str, Pictures]:
        """What else the system is given, at the model's size.

        Raises:
            Damaged: the reference cannot be read.
        """
        if self.reference is None:
            return {}
        colours = colours_of(self.reference)
        frame = Frame.of(colours.shape[0], colours.shape[1], side)
        return {REFERENCES: Pictures(images=frame.onto(colours), names=("",))}


class Inputs:
    """Finds what is given of each of the pictures.

    Args:
        host, wanted, side: the model, what shall change, and the size that pictures are worked on at.
        said, masks, reference: as `run.editing.edit` takes them.

    Raises:
        BadRequest: a mask or a reference is missing, or belongs to no picture.
    """

    def __init__(
        self,
        pictures: Found,
        *,
        host: Any,
        wanted: Wanted,
        side: int,
        said: str,
        masks: str | Path | None,
        reference: str | Path | None,
    ) -> None:
        self._host, self._wanted, self._side = host, wanted, side
        self._texts, self._masks = Captions(said, pictures.root, host), Masks(masks, pictures)
        self._references = References(reference, pictures)

    def of(self, name: PurePosixPath, file: Path, picture: Original) -> Given:
        """What is given of one picture."""
        frame = Frame.of(picture.height, picture.width, self._side)
        caption, where = self._texts.of(str(name), file, frame.onto(picture.colours).float() / 255)
        return Given(
            said=said_of(self._host, self._wanted, caption, name.stem),
            captioned=where,
            mask=self._masks.of(name, picture.height, picture.width),
            reference=self._references.of(name),
        )


def refuse_unread(method: ImageEdit, reference: str | Path | None) -> None:
    """Raises BadRequest where a system needs a reference and has none, or has one that it would not read."""
    reads = REFERENCES in method.card.reads
    if reads and reference is None:
        raise BadRequest(
            f"{method.card.name} takes something from another picture. Give --reference FILE for all pictures, or a "
            "folder of files that are called like them."
        )
    if not reads and reference is not None:
        raise BadRequest(f"{method.card.name} reads no other pictures; leave out --reference, or take style_id.")
