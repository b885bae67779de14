"""A patched model as the folder of a pipeline: weights with the changes in them, tokenizers that know the words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from palimpsest.core.declared import read, shown
from palimpsest.core.errors import BadRequest, Damaged, Unsupported
from palimpsest.core.files import build_beside, read_tensors
from palimpsest.core.patch import Patch
from palimpsest.core.words import Word

INDEX = "model_index.json"
CONFIG = "config.json"
TABLE = "token_embedding.weight"


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What was written.

    Args:
        path: the folder; `DiffusionPipeline.from_pretrained(path)` reads it.
        tokens: by word, the tokens that its tokenizers now have for it; a prompt says the first alone.
        nbytes: of all files.
    """

    path: Path
    tokens: Mapping[str, tuple[str, ...]]
    nbytes: int


def export_pipeline(patch: Patch, host: Any, out: str | Path, *, force: bool = False) -> Whole:
    """Writes the model with the patch in its weights, and its words in tokenizers and token tables.

    Files of the model's folder that no part of the pipeline holds (a safety checker, a drawn world) are copied.

    Args:
        host: the model that the patch was made for, in the precision that is to be written.
        out: the folder to write; it must not exist.
        force: also where the host is not the model that the patch was made for.

    Raises:
        Unsupported: hooks; words that a T5 reads as plain text, or of several vectors where the pipeline writes out
            none; a model that is no pipeline.
        BadRequest: the folder exists, or the tokenizer knows a word already.
        WrongBase, Damaged: the patch does not fit the host.
    """
    out = Path(out)
    if not hasattr(getattr(host, "pipeline", None), "save_pretrained"):
        raise Unsupported(f"{host.name} is no text-to-image pipeline; nothing else is written as one.")
    if patch.hooks:
        raise Unsupported(
            f"{shown(patch.hooks[0].id)} acts while the model runs and is no weight: use the patch itself "
            "(`palimpsest sample --patch`, or `with patch.applied(host)`)."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadRequest(f"{out} exists; a pipeline is written to a folder of its own. Give another.")
    tokens = {word: _tokens(word, meant, host) for word, meant in sorted(patch.words.items())}
    every = [token for own in tokens.values() for token in own]
    if twice := sorted({token for token in every if every.count(token) > 1}):
        raise BadRequest(f"Two words would both be the token {shown(twice[0])}; rename one of them.")
    if out.is_dir():
        out.rmdir()
    with replace(patch, words={}).applied(host, force=force):
        build_beside(out, lambda folder: _build(folder, host, patch.words, tokens))
    return Whole(path=out, tokens=tokens, nbytes=sum(f.stat().st_size for f in out.rglob("*") if f.is_file()))


def _tokens(word: str, meant: Word, host: Any) -> tuple[str, ...]:
    """What tokenizers call a word's vectors, as diffusers does: the word, and with `_1` and so on those behind it.

    Raises:
        Unsupported, BadRequest: see `export_pipeline`.
    """
    meant.fits(word, host)
    tables = host.parts("token_embedding")
    if set(tables) - set(meant.vectors) or set(tables) - set(host.parts("clip_token_embedding")):
        raise Unsupported(
            f"{shown(word)} is read by a T5, whose tokenizer has no plain text for a word and whose table no room: a "
            "pipeline's files cannot say it. Use the patch itself, or export the weights and the embedding apart."
        )
    counts = {len(vectors) for vectors in meant.vectors.values()}
    if len(counts) > 1:
        raise Unsupported(f"{shown(word)} has more vectors for one encoder than for the other; no pipeline reads that.")
    (n,) = counts
    if n > 1 and not hasattr(host.pipeline, "maybe_convert_prompt"):
        raise Unsupported(
            f"{shown(word)} has {n} vectors, and a {type(host.pipeline).__name__} writes out no word of several."
        )
    return (word, *(f"{word}_{i}" for i in range(1, n)))


def _build(folder: Path, host: Any, words: Mapping[str, Word], tokens: Mapping[str, tuple[str, ...]]) -> None:
    pipeline, base = host.pipeline, host.folder
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    if base is None or not (base / INDEX).is_file():
        pipeline.save_pretrained(folder)
    else:
        _copy(base, folder, modules)
        for name, module in modules.items():
            module.save_pretrained(folder / name)  # type: ignore[operator]
    for table in host.parts("clip_token_embedding") if words else ():
        part = table.partition(".")[0]
        own = {
            token: v
            for word, meant in words.items()
            for token, v in zip(tokens[word], meant.vectors[table], strict=True)
        }
        _grow(folder, part, getattr(pipeline, part.replace("text_encoder", "tokenizer")), own)


def _copy(base: Path, folder: Path, modules: Mapping[str, Any]) -> None:
    """What is not written anew: of parts that are, and of checkpoints of the whole model, nothing."""
    for path in sorted(base.iterdir()):
        weights = path.suffix in (".safetensors", ".ckpt", ".bin", ".pt")
        if path.name.startswith(".") or path.name in modules or weights:
            continue
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns(".*"))
        else:
            shutil.copyfile(path, folder / path.name)


def _grow(folder: Path, part: str, tokenizer: Any, vectors: Mapping[str, Tensor]) -> None:
    """Adds tokens to a tokenizer and their rows to its encoder's table, in a written pipeline."""
    from tokenizers import AddedToken

    place = folder / part.replace("text_encoder", "tokenizer")
    own = type(tokenizer).from_pretrained(place if place.is_dir() else tokenizer.name_or_path)
    known = own.get_vocab()
    if there := [token for token in vectors if token in known]:
        raise BadRequest(f"The tokenizer of {part} knows {shown(there[0])} already; give the word another name.")
    own.add_tokens([AddedToken(token, single_word=True) for token in vectors])
    ids = dict(zip(vectors, own.convert_tokens_to_ids(list(vectors)), strict=True))
    own.save_pretrained(place)
    path = folder / part / "model.safetensors"
    meta, tensors = read_tensors(path, "a text encoder")
    name = next((key for key in tensors if key.endswith(TABLE)), None)
    if name is None:
        raise Damaged(f"{path} has no {TABLE}.")
    old = tensors[name]
    table = torch.zeros(max(len(old), *(i + 1 for i in ids.values())), old.shape[1], dtype=old.dtype)
    table[: len(old)] = old
    for token, i in ids.items():
        table[i] = vectors[token].to(old.dtype)
    save_file({**tensors, name: table}, path, metadata=meta)
    config = read(folder / part / CONFIG, dict, "the configuration of a text encoder")
    for held in (config, config.get("text_config") or {}):
        if "vocab_size" in held:
            held["vocab_size"] = len(table)
        # CLIP models with a 2 here look for the end of a prompt at the largest id, which a new token would be.
        if held.get("eos_token_id") == 2:
            held["eos_token_id"] = own.eos_token_id
    (folder / part / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
