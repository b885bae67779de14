"""A patch as the folder that people upload: files for other programs, the patch, its receipt, and a model card."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.files import write_text
from palimpsest.core.patch import Patch
from palimpsest.core.printable import printable
from palimpsest.export import Embedded, Exported, export_patch, export_words
from palimpsest.hosts import hub
from palimpsest.receipt import schema
from palimpsest.receipt.document import VECTORS_FILE
from palimpsest.receipt.make import HTML_FILE, JSON_FILE, PATCH_FILE
from palimpsest.run.model_card import HERE, Told, card

CARD = "README.md"
EMBEDDINGS = "embeddings"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was written.

    Args:
        path: the folder.
        files: all files in it, by their names there.
        lora: the LoRA; None where the patch is none.
        why_not: why it is none, in words; "" where it is.
    """

    path: Path
    files: tuple[str, ...]
    lora: Exported | None
    why_not: str


def publish(
    patch: Patch,
    host: Any,
    out: str | Path,
    *,
    receipt: str | Path | None = None,
    base_model: str = "",
    licence: str = "",
    rank: int | None = None,
    half: bool = False,
    force: bool = False,
) -> Published:
    """Writes a folder for the Hugging Face hub. Nothing is sent anywhere.

    A LoRA for diffusers where the patch is one, embeddings of its words, the patch itself, the receipt, and README.md
    with what was changed, the receipt's numbers, and how to use and repeat it.

    Args:
        host: the model that the patch was made for.
        receipt: the folder of a receipt about this patch; None: the card says that there is none.
        base_model: the model's name on the hub, owner/name; "": the name that it was loaded by, where that is one.
        licence: for the card, as the hub spells it: "openrail", "apache-2.0"; "": none is said.
        rank, half, force: as in `export_patch`.

    Raises:
        BadRequest: a receipt about something else, or a name or licence that the hub would not take.
        WrongBase, Damaged: the patch does not fit the host.
    """
    out, told = Path(out), None
    base = _base(base_model, host)
    if licence and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", licence):
        raise BadRequest(f"{licence!r} is no licence as the hub spells them: small letters, such as apache-2.0.")
    if receipt is not None:
        told = schema.load(Path(receipt) / JSON_FILE)
        if told["edited"].get("sha256") != patch.sha256():
            raise BadRequest(f"The receipt in {receipt} is about another patch. Audit this one, or name no receipt.")
    patch.fits(host, force=force)
    lora, why_not = _lora(patch, host, out, rank, half, force)
    words = _words(patch, host, out, half, force)
    patch.save(out / PATCH_FILE)
    kept = (JSON_FILE, HTML_FILE, VECTORS_FILE) if receipt is not None else ()
    for name in kept:
        if (path := Path(str(receipt)) / name).is_file() and path.resolve() != (out / name).resolve():
            shutil.copyfile(path, out / name)
    said = Told(
        name=out.resolve().name,
        base=base,
        local=Path(host.name).name if Path(host.name).is_absolute() else host.name,
        licence=licence,
        draws=hasattr(host, "pipeline"),
        patch=patch,
        lora=lora,
        why_not=why_not,
        words=tuple((one.word, _calls(one)) for one in words),
        receipt=told,
    )
    write_text(out / CARD, card(said))
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return Published(path=out, files=tuple(files), lora=lora, why_not=why_not)


def _base(given: str, host: Any) -> str:
    """The base model's name on the hub, "" where it has none.

    Raises:
        BadRequest: the name that was given cannot be one.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    # Models of a shelf are called like repositories, and folders may be.
    local = host.name.startswith("tiny/") or Path(host.name).exists()
    name = given or (host.name if hub.is_name(host.name) and not local else "")
    if name:
        try:
            validate_repo_id(name)
        except HFValidationError as e:
            raise BadRequest(f"{printable(name)!r} cannot be a model's name on the hub: {printable(str(e))}") from e
    return name


def _lora(patch: Patch, host: Any, out: Path, rank: int | None, half: bool, force: bool) -> tuple[Exported | None, str]:
    """The LoRA, or why there is none."""
    if not patch.deltas:
        return None, "" if patch.words else "It changes no weights."
    try:
        return export_patch(patch, host, "peft", out, rank=rank, half=half, force=force), ""
    except Unsupported as e:
        return None, str(e)


def _words(patch: Patch, host: Any, out: Path, half: bool, force: bool) -> Sequence[Embedded]:
    """The patch's words as embeddings, where other programs read such; the patch has them in any case."""
    if not patch.words:
        return ()
    try:
        return export_words(patch, out / EMBEDDINGS, host=host, half=half, force=force)
    except Unsupported:
        return ()


def _calls(one: Embedded) -> tuple[str, ...]:
    """The calls by which diffusers reads a word, from wherever the folder lies."""
    return tuple(
        call.replace(repr(str(one.path)), repr(f"{HERE}/{EMBEDDINGS}/{one.path.name}")) for call in one.diffusers
    )
