"""Image classifiers: any torch module with a head and labels, and those of transformers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.hosts.encoder import EncoderHost
from palimpsest.hosts.preprocessing import Preprocessing, of_processor
from palimpsest.hosts.source import Family, Source
from palimpsest.hosts.weights import loaded


class ClassifierHost(EncoderHost):
    """A torch image classifier as a Classifier: `logits`, and as `embed` what its head reads.

    Args:
        model: maps preprocessed pictures to logits (n, labels): a tensor, an output with `.logits`, or a tuple whose
            first entry they are.
        name: as messages and receipts call it.
        labels: one for each logit.
        head: name of the module that turns features into logits.
        backbone: name of the module that makes the features; "": the whole model.
        preprocessing: what the network expects.
        folder: where it was loaded from.
        anew: builds the same network with fresh weights, as its library draws them; for systems that train anew.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        labels: Sequence[str],
        head: str,
        backbone: str = "",
        preprocessing: Preprocessing | None = None,
        folder: Path | None = None,
        anew: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__(model, name=name, preprocessing=preprocessing, folder=folder)
        self.anew = anew
        self.labels = tuple(labels)
        self._parts = {"head": head, "backbone": backbone}
        modules = dict(model.named_modules())
        for role, part in self._parts.items():
            if part not in modules:
                known = ", ".join(child for child, _ in model.named_children())
                raise BadRequest(f"{name} has no module {part!r} to be its {role}; its children are {known}.")

    def parts(self, role: str) -> dict[str, nn.Module]:
        """ "head" and "backbone"; {} for all other roles."""
        return {self._parts[role]: self.root.get_submodule(self._parts[role])} if role in self._parts else {}

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "labels": list(self.labels), **self._parts}

    def logits(self, images: Tensor) -> Tensor:
        """(n, len(labels)) float32 of images (n, 3, H, W) in [0, 1]; differentiable."""
        out = self._out(images)
        out = getattr(out, "logits", out[0] if isinstance(out, (tuple, list)) and out else out)
        if not isinstance(out, Tensor) or out.shape != (len(images), len(self.labels)):
            shape = f"of shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise Unsupported(
                f"{self.name} answers {len(images)} pictures with {shape}; expected logits of shape "
                f"({len(images)}, {len(self.labels)}), alone, as .logits or first in a tuple."
            )
        return out.float()

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, d) that the head reads and logits, float32, of one forward; differentiable."""
        caught: list[Tensor] = []
        head = self.root.get_submodule(self._parts["head"])
        handle = head.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
        try:
            logits = self.logits(images)
        finally:
            handle.remove()
        return caught[0].flatten(1).float(), logits

    def embed(self, images: Tensor) -> Tensor:
        """(n, d) float32 features that the head reads; differentiable. Cost: one forward, head included."""
        return self.read(images)[0]


def head_of(model: nn.Module, classes: int, name: str) -> str:
    """The name of the one linear layer that gives this many logits, or of the last of several in a row.

    Raises:
        Unsupported: there is none, or several heads decide together.
    """
    if isinstance(getattr(model, "classifier", None), nn.Module):
        return "classifier"
    heads = [part for part, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if len(heads) != 1:
        raise Unsupported(
            f"{name} has {len(heads)} layers that give its {classes} logits ({', '.join(heads) or 'none'}); expected "
            "one head. A model that was distilled with a teacher's head loads without it: its class's name without "
            "WithTeacher in config.json."
        )
    return heads[0]


def _detect(files: Collection[str], config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return any("ForImageClassification" in str(name) for name in config.get("architectures") or ())


def _load(source: Source) -> ClassifierHost:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as LISTED

    name = str(source.config["architectures"][0])
    listed = [one for entry in LISTED.values() for one in ((entry,) if isinstance(entry, str) else entry)]
    if name not in listed:
        raise Unsupported(f"{source.name} is a {name}, which the transformers installed here does not have.")
    if source.config.get("problem_type") not in (None, "single_label_classification"):
        raise Unsupported(
            f"{source.name} is trained for {source.config['problem_type']}: its labels do not exclude each other, and "
            "everything here reads one class from a picture."
        )
    preprocessing = of_processor(source.path)
    model = loaded(getattr(transformers, name), source.path, source.dtype)
    names = model.config.id2label
    backbone = model.base_model_prefix
    if not isinstance(getattr(model, backbone, None), nn.Module):
        backbone = next(child for child, _ in model.named_children() if child != "classifier")
    return ClassifierHost(
        model.to(source.device),
        name=source.name,
        labels=[str(names[i]) for i in sorted(names)],
        head=head_of(model, len(names), source.name),
        backbone=backbone,
        preprocessing=preprocessing,
        folder=source.path,
        anew=partial(type(model), model.config),
    )


FAMILY = Family(_detect, _load)
