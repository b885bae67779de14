"""A patch as a LoRA file that draws the same pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from palimpsest.core.delta import Delta, Dense, LowRank
from palimpsest.core.errors import BadRequest, Damaged, Unsupported, WrongBase
from palimpsest.core.files import write_beside
from palimpsest.core.patch import Patch
from palimpsest.export import arranged
from palimpsest.export.embedding import tensors_of
from palimpsest.export.factors import RESIDUAL, balanced, factors, padded, residual
from palimpsest.export.names import Format, is_t5

BUNDLE = "bundle_emb."
"""What the keys of words in a LoRA's file begin with."""
PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
# Without the model at hand, only these layers are known to be linear whatever the family.
_LINEAR = (".transformer_blocks.", ".encoder.layers.", "single_transformer_blocks.")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Args:
        path: the file; `pipe.load_lora_weights(path)` reads it.
        layers: how many layers it changes.
        rank: of every layer; the alpha is the same number, so that the strength is 1.
        own_rank: the largest and the smallest rank that the changes have; smaller ones are padded with zeros.
        nbytes: of the tensors.
        lost: by layer, what the rank leaves out of its change, as a share of that in Frobenius norm; only of layers
            that were cut.
        lost_in_all: the same of all layers together.
    """

    path: Path
    layers: int
    rank: int
    own_rank: tuple[int, int]
    nbytes: int
    lost: Mapping[str, float]
    lost_in_all: float


def export_patch(
    patch: Patch,
    host: Any,
    format: Format,
    out: str | Path,
    *,
    rank: int | None = None,
    half: bool = False,
    force: bool = False,
) -> Exported:
    """Writes a patch as a LoRA that `diffusers`, ComfyUI and kohya's tools read and that draws the same pictures.

    All layers get one rank and alpha = rank: readers disagree about files whose layers differ in either. The rank is
    the largest that any layer's change has; nothing is cut off unless `rank` says so. A dense change of full rank is
    exported too, in a file up to about twice its size.

    Words of the patch are part of a "bundle" alone; else `export_words` writes them, and both files are the patch.

    Args:
        patch: every delta must be of a linear or convolution layer's weight in the denoiser or a text encoder.
        host: the model that the patch was made for. None serves where only attention blocks and text encoder layers
            change by dense or low-rank deltas; otherwise shapes and kinds of layers are not known without it.
        format: "peft" (`pytorch_lora_weights.safetensors`), "kohya" (`<folder>.safetensors`) or "bundle": kohya's with
            the patch's words as `bundle_emb.<word>.*`, which A1111 and OneTrainer read.
        out: the folder to write to.
        rank: the highest that any layer may have. What is above is cut to its largest singular values, and the file's
            header says what each layer lost.
        half: float16 instead of float32; half the size, rounded to three digits.
        force: also where the host is not the model that the patch was made for.

    Raises:
        Unsupported: something that no LoRA can hold: hooks, biases, norms, embedding tables, the autoencoder.
        BadRequest: an empty patch, one that needs the host, or a rank below 1.
        Damaged: a delta that is not one of its layer.
        WrongBase: the host is another model.

    Cost: one symmetric eigendecomposition for each dense or sparse delta; none for low-rank ones.
    """
    _check(patch, host, format, force)
    if rank is not None and rank < 1:
        raise BadRequest(f"The rank is {rank}; a LoRA has at least 1.")
    shapes = {name: _shape(name, delta, host) for name, delta in patch.deltas.items()}
    changes = dict(sorted(patch.deltas.items()))
    layers = arranged.in_peft(changes, shapes) if format == "peft" else arranged.in_kohya(changes, shapes, host)
    made = {key: factors(delta, shape, rank) for key, (delta, shape) in layers.items()}
    lost, lost_in_all = _lost(layers, made) if rank is not None else ({}, 0.0)
    ranks = [up.shape[1] for up, _ in made.values()]
    most = max(1, *ranks)
    dtype = torch.float16 if half else torch.float32
    tensors: dict[str, Tensor] = {}
    for key, (up, down) in made.items():
        up, down = padded(*balanced(up.detach().cpu(), down.detach().cpu()), most)
        kernel = layers[key][1][2:]
        if kernel:  # a convolution: the kernel's shape goes to the first factor, the second is 1 x 1
            down, up = down.reshape(most, -1, *kernel), up.reshape(len(up), most, *([1] * len(kernel)))
        tensors |= _keyed(key, up.to(dtype), down.to(dtype), most, format)
    if format == "bundle":
        tensors |= {key: t.detach().cpu().to(dtype) for key, t in _bundled(patch).items()}
    _finite(tensors)
    folder = Path(out)
    path = folder / ("pytorch_lora_weights.safetensors" if format == "peft" else f"{folder.resolve().name}.safetensors")
    held = {key: t.contiguous().clone() for key, t in tensors.items()}
    header = _header(patch, host, format, most)
    if lost:
        header["palimpsest_residual"] = json.dumps({"in_all": lost_in_all, "layers": lost}, sort_keys=True)
    write_beside(path, lambda tmp: save_file(held, tmp, metadata=header))
    return Exported(
        path=path,
        layers=len(patch.deltas),
        rank=most,
        own_rank=(max(ranks), min(ranks)),
        nbytes=sum(t.numel() * t.element_size() for t in held.values()),
        lost=lost,
        lost_in_all=lost_in_all,
    )


def _keyed(key: str, up: Tensor, down: Tensor, rank: int, format: Format) -> dict[str, Tensor]:
    if format == "peft":
        return {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    alpha = torch.tensor(float(rank), dtype=up.dtype)
    return {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}


def _lost(layers: arranged.Arranged, made: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[dict[str, float], float]:
    """What factors leave out, of each layer where that is more than rounding, and of all."""
    sizes = {key: residual(delta, shape, *made[key]) for key, (delta, shape) in layers.items()}
    lost = {key: left / whole for key, (left, whole) in sizes.items() if left > 2 * RESIDUAL * whole}
    left, whole = (sum(size[i] ** 2 for size in sizes.values()) ** 0.5 for i in (0, 1))
    return lost, left / whole if lost else 0.0


def _bundled(patch: Patch) -> dict[str, Tensor]:
    """A patch's words under the keys of a bundle."""
    found: dict[str, Tensor] = {}
    for word, meant in sorted(patch.words.items()):
        if "." in word:
            raise Unsupported(
                f"{word!r} has a dot, which ends a word in a bundle's keys; rename it, or export it apart."
            )
        for key, vectors in tensors_of(word, meant).items():
            found[f"{BUNDLE}{word}.{'string_to_param.*' if key == word else key}"] = vectors
    return found


def _check(patch: Patch, host: Any, format: Format, force: bool) -> None:
    """Everything that can be known before the work."""
    if format not in get_args(Format):
        raise BadRequest(f"There is no format {format!r}; use one of {', '.join(get_args(Format))}.")
    if patch.hooks:
        raise Unsupported(
            f"{patch.hooks[0].id} acts while the model runs, which a LoRA cannot: use the patch itself "
            "(`palimpsest sample --patch`, or `with patch.applied(host)`)."
        )
    if not patch.deltas:
        words = "brings words alone; export them as embeddings: --format embedding."
        raise BadRequest(f"The patch {words if patch.words else 'changes nothing; there is nothing to export.'}")
    if host is not None and not force and host.fingerprint() != patch.base:
        raise WrongBase(
            f"This patch was made for the model {patch.base[:12]}, but {host.name} is {host.fingerprint()[:12]}. Give "
            "the model that it was made for, or force it if you know that the two are close."
        )
    refused = {name: why for name in sorted(patch.deltas) if (why := _why_not(name, host, format))}
    if refused:
        first = next(iter(refused))
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise Unsupported(
            f"{first}{more} cannot be part of a LoRA: {refused[first]}. Use the patch itself, or make it anew with "
            "--rank where the system has that option."
        )
    for name, delta in patch.deltas.items():
        delta.fits()
        delta.fits(shape := _shape(name, delta, host))
        if len(shape) < 2 or not shape.numel():
            raise Damaged(f"{name} has the shape {tuple(shape)}, which no layer's weight has; the patch is damaged.")
    if format == "bundle" and not patch.words:
        raise BadRequest("The patch brings no word to bundle with its weights; export it with --format kohya.")
    if host is None and format != "peft" and any(n.startswith("text_encoder.") for n in patch.deltas):
        raise BadRequest("The text encoder's name in this format depends on the model family: give --model.")


def _why_not(name: str, host: Any, format: Format) -> str:
    """Why a tensor has no place in a LoRA; "" where it has."""
    part, layer = name.partition(".")[0], name.rpartition(".")[0]
    if part not in PARTS:
        return f"it belongs to the {part}, and LoRAs hold layers of {', '.join(PARTS)} only"
    if is_t5(name) and format == "peft":
        return "it belongs to a T5, whose layers diffusers does not look for in a LoRA; kohya's format has them"
    if name.endswith(".bias"):
        return "it is a bias, and LoRAs change weights only"
    if "norm" in layer.rpartition(".")[2]:
        return "it is the weight of a normalisation"
    if layer.endswith(("token_embedding", "position_embedding", "class_embedding", "shared")):
        return "it is an embedding table, for which LoRA readers have no common name"
    if not name.endswith(".weight"):
        return "it is not a layer's weight"
    if host is not None:
        try:
            module = host.root.get_submodule(layer)
        except AttributeError as e:
            raise WrongBase(f"The patch changes {name!r}, which {host.name} does not have.") from e
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            return f"it belongs to a {type(module).__name__}, and LoRAs hold linear and convolution layers only"
    return ""


def _shape(name: str, delta: Delta, host: Any) -> torch.Size:
    """Of the weight that a delta changes."""
    if host is not None:
        return host.root.get_parameter(name).shape
    if isinstance(delta, Dense):
        return delta.value.shape
    if isinstance(delta, LowRank) and any(where in f".{name}" for where in _LINEAR):
        return torch.Size((delta.up.shape[0], delta.down.shape[1]))
    raise BadRequest(f"The shape of {name} is not known without the model: give --model.")


def _finite(tensors: Mapping[str, Tensor]) -> None:
    bad = next((key for key, t in tensors.items() if not bool(torch.isfinite(t).all())), None)
    if bad is not None:
        raise Unsupported(f"{bad} has numbers that are not finite in {tensors[bad].dtype}; export in float32.")


def _header(patch: Patch, host: Any, format: Format, rank: int) -> dict[str, str]:
    """Where the file comes from; plain text, ignored by readers that do not know it."""
    made = patch.provenance
    told = {"base": patch.base, "patch": patch.sha256(), "method": made.get("method"), "request": made.get("request")}
    header = {"format": "pt", "palimpsest_export": json.dumps(told, sort_keys=True)}
    if format != "peft":
        header |= {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
        family = architecture(host)
        if family:
            header |= {"modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": f"{family}/lora"}
    return header


def architecture(host: Any) -> str:
    """The published family that a model belongs to, as model headers spell it; "" for models of other sizes.

    It is told by the width of the text states that the denoiser reads, and by what SD 2 predicts.
    """
    if host is None or not host.parts("cross_key"):
        return ""
    layers = list(host.parts("cross_key").values())
    second = "stable-diffusion-v2-768-v" if host.prediction == "v_prediction" else "stable-diffusion-v2-512"
    known = {768: "stable-diffusion-v1", 1024: second, 2048: "stable-diffusion-xl-v1-base"}
    return known.get(layers[0].weight.shape[1], "")
