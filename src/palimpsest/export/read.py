"""Other programs' embeddings and LoRAs as patches of a model: what a file calls its vectors and layers.

| keys of a safetensors file | who writes it | the word |
|---|---|---|
| one tensor under any name | diffusers | the name |
| `emb_params`; `string_to_param.*` | converters of A1111's files | the file's name |
| `clip_l`, `clip_g` | A1111, ComfyUI, kohya's tools | the file's name |
| `text_encoders_0`, `text_encoders_1` | diffusers' training scripts | the file's name |
| `bundle_emb.WORD.` and any of these | A1111, OneTrainer: words inside a LoRA | WORD |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from palimpsest.core.declared import shown
from palimpsest.core.delta import REAL
from palimpsest.core.errors import BadRequest, Damaged, Unsupported
from palimpsest.core.files import read_tensors
from palimpsest.core.patch import Patch
from palimpsest.core.printable import printable
from palimpsest.core.words import MOST, Word, sound
from palimpsest.export.embedding import PAIR, WORD
from palimpsest.export.lora import BUNDLE
from palimpsest.export.read_lora import Read, is_lora, read_lora
from palimpsest.export.told import CONFIG, Told

MOST_KEY = 200  # letters of a key in a provenance
ONE = ("emb_params", "string_to_param.*", "*")
"""Keys under which a file has the vectors of the one word that it is called by."""
OTHER_PAIR = ("text_encoders_0", "text_encoders_1")


WEIGHTS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What peft and diffusers call the one file of a folder."""


def read_patch(path: str | Path, host: Any, *, allow_unmatched: bool = False) -> Patch:
    """A patch file; or an embedding, a LoRA or one of its kin of another program, as a patch of this model.

    The patch's provenance says what was read: forms, ranks, and keys that were left out.

    Args:
        path: the file, or a folder as peft and diffusers write it.
        allow_unmatched: leave out tensors that have no place in the model; else they are an error.

    Raises:
        Damaged: none of these, or parts are missing; a pickle (.pt, .bin) is never opened.
        WrongBase, BadRequest: layers or vectors that the model does not have, or an encoder that is left without any.
        Unsupported: other forms than those of `export.forms`, or quantised numbers.
    """
    path = weights_of(Path(path))
    meta, tensors = read_tensors(path, "a patch, an embedding or a LoRA")
    if "palimpsest" in meta or not is_foreign(tensors):
        return Patch.load(path)
    if host is None:
        raise Unsupported(
            f"{path} is of another program, and only the loaded model tells what it changes: give the model that it is "
            "for, without --stream, or make a patch of it first (`palimpsest import`)."
        )
    words, found = {}, Read(deltas={}, forms={}, ranks=(), unmatched=())
    if is_lora(tensors):
        inside = _bundled(tensors)
        weights = {key: t for key, t in tensors.items() if not key.startswith(BUNDLE)}
        told = Told.of(path, meta)
        found = read_lora(weights, host, str(path), told, allow_unmatched=allow_unmatched)
        words = {word: word_of(word, vectors, host, str(path)) for word, vectors in inside.items()}
    else:
        word = _called(path, meta, list(tensors))
        words = {word: word_of(word, tensors, host, str(path))}
    try:
        sound(words)
    except BadRequest as e:
        raise Damaged(f"{path} brings no word: {e}") from e
    provenance: dict[str, Any] = {"method": "import", "file": path.name}
    if found.forms:
        provenance["forms"] = dict(found.forms)
    if found.ranks:
        provenance["ranks"] = [min(found.ranks), max(found.ranks)]
    if found.unmatched:
        provenance["unmatched"] = [printable(key)[:MOST_KEY] for key in found.unmatched]
    patch = Patch(base=host.fingerprint(), deltas=found.deltas, words=words, provenance=provenance)
    patch.fits(host)
    return patch


def weights_of(path: Path) -> Path:
    """The one file of tensors of a folder that peft or diffusers wrote; a file is itself.

    Raises:
        Damaged: the folder has none, or a pickle instead.
    """
    if not path.is_dir():
        return path
    found = [path / name for name in WEIGHTS if (path / name).is_file()]
    if found:
        return found[0]
    pickles = [p.name for name in WEIGHTS for p in path.glob(f"{Path(name).stem}.*") if p.suffix in (".bin", ".pt")]
    if pickles:
        raise Damaged(
            f"{path} has its tensors in {pickles[0]}, a pickle, which could run code when loaded; it was not opened. "
            "Save it as safetensors (peft: save_pretrained(..., safe_serialization=True))."
        )
    raise Damaged(f"{path} holds neither {' nor '.join(WEIGHTS)}; give the file of the LoRA.")


def _bundled(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """By word, the tensors of words inside a LoRA under the keys that they would have in a file of their own."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(BUNDLE):
            word, _, rest = key.removeprefix(BUNDLE).partition(".")
            found.setdefault(word, {})[rest] = tensor
    return found


def is_foreign_file(path: Path) -> bool:
    """Whether a safetensors file's header names what an embedding or a LoRA holds; no tensor is read. Also of a folder
    that peft or diffusers wrote for a LoRA alone."""
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        return (path / CONFIG).is_file() or any((path / name).is_file() for name in WEIGHTS)
    try:
        with safe_open(path, framework="pt") as f:
            return is_foreign(f.keys())
    except (SafetensorError, OSError, ValueError):
        return False


def is_own_file(path: Path) -> bool:
    """Whether a safetensors file's header says that it is a patch; no tensor is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            return "palimpsest" in (f.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False


def is_foreign(keys: Iterable[str]) -> bool:
    """Whether a file with tensors of these names can be an embedding or a LoRA."""
    names = set(keys)
    pair = bool(names) and (names <= set(PAIR) or names <= set(OTHER_PAIR))
    return len(names) == 1 or pair or is_lora(names)


def _called(path: Path, meta: Mapping[str, str], keys: Sequence[str]) -> str:
    """What a file's word is called: as we wrote it, else by the one tensor's name, else by the file's."""
    if WORD in meta:
        return meta[WORD]
    if len(keys) == 1 and keys[0] not in (*ONE, *PAIR, *OTHER_PAIR):
        return keys[0]
    return "_".join(path.stem.split())


def word_of(word: str, tensors: Mapping[str, Tensor], host: Any, where: str) -> Word:
    """A word of a model, of its vectors as another program calls them."""
    every, tables = host.parts("token_embedding"), host.parts("clip_token_embedding")
    if not tables:
        raise Unsupported(f"{where} brings a word; {host.name} reads no prompts by a CLIP encoder.")
    vectors: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        rows = tensor[None] if tensor.dim() == 1 else tensor
        if rows.dim() != 2 or not 0 < len(rows) <= MOST or rows.dtype not in REAL:
            raise Damaged(f"{where} has {shown(key)} of the shape {tuple(tensor.shape)}; a word has (1 to {MOST}, d).")
        table = _table(key, rows.shape[1], tables, host, where)
        if table in vectors:
            raise Damaged(f"{where} has vectors of {shown(word)} for {table} twice; get a fresh copy.")
        vectors[table] = rows
    only_others = len(every) > len(tables) == len(vectors)
    return Word(vectors=vectors, reads_as=word.strip("<>") if only_others else "")


def _table(key: str, width: int, tables: Mapping[str, Any], host: Any, where: str) -> str:
    """The token table that a tensor's vectors are rows of: by its key where that names an encoder, else by width."""
    wide = {name: table.weight.shape[1] for name, table in tables.items()}
    for pair in (PAIR, OTHER_PAIR):
        if key in pair:
            fitting = list(wide)[pair.index(key) : pair.index(key) + 1]
            break
    else:
        fitting = [name for name in wide if wide[name] == width]
    if len(fitting) != 1 or wide[fitting[0]] != width:
        sizes = " and ".join(map(str, wide.values()))
        raise BadRequest(
            f"{where} has vectors of {width} numbers under {shown(key)}; the CLIP encoders of {host.name} read "
            f"{sizes}. It was made for another family of models."
        )
    return fitting[0]
