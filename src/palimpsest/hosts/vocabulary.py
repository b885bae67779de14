"""Tokenizers for checkpoints that bring none: from a folder, an installed package, or the hub's cache on this disk."""

from __future__ import annotations

import gzip
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

from palimpsest.core.errors import BadRequest, Damaged, Unsupported
from palimpsest.hosts import hub
from palimpsest.hosts.source import Source, first_line, quiet

LONGEST = 77  # tokens of a prompt that CLIP text encoders of all families read
WORDS = 49408  # of CLIP's vocabulary: 256 bytes, the same at the end of a word, merges, start and end
START, END = "<|startoftext|>", "<|endoftext|>"
PACKAGE, ZIPPED = "open_clip", "bpe_simple_vocab_16e6.txt.gz"
CLIP_FILES, T5_FILES = ("vocab.json", "merges.txt"), ("tokenizer.json", "spiece.model")
# Repositories that hold them, in the order in which they are looked for: (repository, folder in it).
CLIP_AT_HUB = (
    ("openai/clip-vit-large-patch14", ""),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"),
    ("runwayml/stable-diffusion-v1-5", "tokenizer"),
    ("CompVis/stable-diffusion-v1-4", "tokenizer"),
    ("stabilityai/stable-diffusion-2-1", "tokenizer"),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer"),
    ("stabilityai/stable-diffusion-3-medium-diffusers", "tokenizer"),
    ("black-forest-labs/FLUX.1-dev", "tokenizer"),
    ("black-forest-labs/FLUX.1-schnell", "tokenizer"),
)
T5_AT_HUB = (
    ("google/t5-v1_1-xxl", ""),
    ("stabilityai/stable-diffusion-3-medium-diffusers", "tokenizer_3"),
    ("black-forest-labs/FLUX.1-dev", "tokenizer_2"),
    ("black-forest-labs/FLUX.1-schnell", "tokenizer_2"),
)


def tokenizer(source: Source, part: str, layout: str, padding: str, rows: int) -> Any:
    """The tokenizer of one text encoder.

    Args:
        source: its `tokenizer` folder goes first, `download` may fetch.
        part: the component, "tokenizer_2". layout: "t5", or one of CLIP's. padding: of a CLIP tokenizer.
        rows: of the text encoder's table of words; no word may lie beyond it.

    Raises:
        Unsupported: there is none; the message says all ways to go on.
        BadRequest: the folder that was named holds none, or words of another vocabulary.
    """
    t5 = layout == "t5"
    if source.tokenizer is not None:
        folder = _in(source.tokenizer, part, t5)
        held = _t5(folder, source) if t5 else _clip(folder, padding, exact=folder.name == part)
    elif t5:
        held = _t5(_found(source, T5_AT_HUB, T5_FILES, part, t5), source)
    else:
        zipped = installed()
        if zipped is not None:
            with tempfile.TemporaryDirectory() as folder:
                written(clip_words(zipped), Path(folder))
                held = _clip(Path(folder), padding)
        else:
            held = _clip(_found(source, CLIP_AT_HUB, CLIP_FILES, part, t5), padding)
    if len(held) > rows:
        raise BadRequest(
            f"The tokenizer of {source.name} has {len(held)} words and its text encoder {rows}: it is another model's. "
            "Give the one that it was trained with: --tokenizer FOLDER."
        )
    return held


def installed() -> Path | None:
    """CLIP's vocabulary in an installed open_clip_torch, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return next((path for place in places if (path := Path(place) / ZIPPED).is_file()), None)


def clip_words(zipped: Path, words: int = WORDS) -> tuple[dict[str, int], list[str]]:
    """CLIP's vocabulary and merges, from the list of merges that its authors published.

    Raises:
        Damaged: the file is no such list.
    """
    try:
        lines = gzip.decompress(zipped.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, ValueError) as e:
        raise Damaged(f"{zipped} cannot be read as CLIP's vocabulary: {e}. Install open_clip_torch again.") from e
    merges = lines[1 : words - 2 * 256 - 1]
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that are letters of their own
    letters = [chr(byte) for byte in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    tokens = [*letters, *(c + "</w>" for c in letters), *(merge.replace(" ", "") for merge in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != words or any(merge.count(" ") != 1 for merge in merges):
        raise Damaged(f"{zipped} is not CLIP's list of merges. Install open_clip_torch again.")
    return vocabulary, merges


def written(words: tuple[dict[str, int], list[str]], folder: Path) -> None:
    """Writes a vocabulary as the files of a tokenizer."""
    vocabulary, merges = words
    (folder / CLIP_FILES[0]).write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / CLIP_FILES[1]).write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    settings = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings |= {"model_max_length": LONGEST, "tokenizer_class": "CLIPTokenizer"}  # type: ignore[dict-item]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _clip(folder: Path, padding: str, *, exact: bool = False) -> Any:
    """A CLIP tokenizer; where the folder is not that of the very component, its padding is the family's."""
    from transformers import CLIPTokenizer

    held = _read(CLIPTokenizer, folder)
    held.model_max_length = min(held.model_max_length, LONGEST)
    if not exact:
        held.pad_token = padding
    return held


def _t5(folder: Path, source: Source) -> Any:
    from transformers import T5TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]  (it knows lazily)

    if not (folder / T5_FILES[0]).is_file() and importlib.util.find_spec("sentencepiece") is None:
        raise Unsupported(
            f"The T5 tokenizer of {source.name} lies in {folder} as {T5_FILES[1]} alone, which takes the package "
            "sentencepiece: pip install sentencepiece protobuf. Or give a folder that has tokenizer.json."
        )
    return _read(T5TokenizerFast, folder)


def _read(cls: Any, folder: Path) -> Any:
    try:
        with quiet():
            return cls.from_pretrained(folder, local_files_only=True)
    except Exception as e:  # whatever transformers meets in a broken file
        raise Damaged(f"{folder} cannot be loaded as a {cls.__name__}: {first_line(e)}. Fetch it again.") from e


def _in(folder: Path, part: str, t5: bool) -> Path:
    """Where in a folder that the user named a tokenizer lies: under the component's name, or there.

    Raises:
        BadRequest: nowhere.
    """
    names = (part, "", "tokenizer_3", "tokenizer_2") if t5 else (part, "", "tokenizer")
    for place in (folder / name for name in names):
        has = {name for name in (*CLIP_FILES, *T5_FILES) if (place / name).is_file()}
        if (
            (has & set(T5_FILES) and CLIP_FILES[1] not in has)
            if t5
            else set(CLIP_FILES) <= has or (T5_FILES[0] in has and place.name == part)
        ):
            return place
    kind, files = ("T5", " or ".join(T5_FILES)) if t5 else ("CLIP", " and ".join(CLIP_FILES))
    raise BadRequest(
        f"--tokenizer {folder} holds no {kind} tokenizer ({files}, there or in {part}/). Give the folder of a whole "
        "pipeline of the same family, or one with these files."
    )


def _found(source: Source, places: tuple[tuple[str, str], ...], files: tuple[str, ...], part: str, t5: bool) -> Path:
    """The folder of a tokenizer in the hub's cache, where one of these repositories is; fetched where that was asked.

    Raises:
        Unsupported: in none; the message says all ways to go on.
    """
    for repository, folder in places:
        there = [hub.cached(repository, f"{folder}/{name}".lstrip("/")) for name in files]
        if any(there) if t5 else all(there):
            return next(path for path in there if path is not None).parent
    if source.download:
        return hub.fetched_files(places[0][0], (*files, "tokenizer_config.json", "special_tokens_map.json"))
    package = "" if t5 else "install the package that ships CLIP's vocabulary: pip install open_clip_torch; "
    raise Unsupported(
        f"{source.name} brings no {part}, as no checkpoint in one file does. Ways to go on: --tokenizer FOLDER, one "
        f"with its files or of a whole pipeline of the same family; {package}--download, which fetches it from "
        f"{places[0][0]} on the Hugging Face hub; or have any of these in the hub's cache: "
        f"{', '.join(dict.fromkeys(name for name, _ in places))}."
    )
