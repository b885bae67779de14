"""palimpsest export"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from palimpsest.cli import options
from palimpsest.cli.options import Loading, refuse_overwriting
from palimpsest.cli.terminal import tell
from palimpsest.core.errors import BadRequest


@dataclass(frozen=True, kw_only=True)
class Export(Loading):
    """Write a patch as files that diffusers, ComfyUI and the web interfaces read and that draw the same pictures.

    Its weights as a LoRA, or its words as embeddings.

    Examples:
      palimpsest export --patch no-star/patch.safetensors --format kohya --out lora
      palimpsest export --patch crown/patch.safetensors --format embedding --out embeddings
    """

    patch: options.PatchFile
    """The patch."""
    format: Literal["peft", "kohya", "embedding", "bundle", "pipeline", "hub"] = "peft"
    """peft for diffusers (`pipe.load_lora_weights(folder)`), kohya for ComfyUI and the web interfaces; embedding: one
    file for each word, which all of them read; bundle: kohya's with the words in it (A1111, OneTrainer); pipeline: the
    whole model with the changes in its weights and the words in its tokenizers; hub: a folder to upload, with LoRA,
    embeddings, patch, receipt and a model card."""
    out: options.Folder = Path("lora")
    """Folder to write to."""
    overwrite: bool = False
    """Replace what is in the out folder already."""
    model: options.Model = ""
    """The model that the patch was made for; needed where the patch does not say enough about its layers."""
    rank: options.OptionalCount = None
    """Cut the changes of a LoRA to this rank; what that leaves out is said, and stands in the file's header."""
    half: bool = False
    """float16: half the size, rounded to three digits."""
    receipt: options.OptionalFolder = None
    """For hub: the folder of the receipt about this patch; the patch's own folder where there is one in it."""
    base_model: options.Name = ""
    """For hub: the base model's name there, owner/name; told from --model where that is one."""
    licence: options.Name = ""
    """For hub: the licence as the hub spells it (openrail, apache-2.0)."""
    force: bool = False
    """Also for a model that the patch was not made for."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.core.patch import Patch
        from palimpsest.export import export_patch, export_words

        if self.rank is not None and self.format in ("embedding", "pipeline"):
            raise BadRequest(f"--rank cuts LoRAs; the format {self.format} is none. Leave it out.")
        if self.half and self.format == "pipeline":
            raise BadRequest("A pipeline is written in the precision that the model is loaded in: --dtype, not --half.")
        if self.format != "hub" and (self.receipt or self.base_model or self.licence):
            raise BadRequest("--receipt, --base-model and --licence are for --format hub; leave them out.")
        refuse_overwriting(self.out, [p.name for p in self.out.glob("*.safetensors")], self.overwrite)
        patch = Patch.load(self.patch)
        host = self.load(self.model) if self.model else None
        if self.format == "pipeline":
            return self._whole(patch, host)
        if self.format == "hub":
            return self._published(patch, host)
        if self.format == "embedding":
            for one in export_words(patch, self.out, host=host, half=self.half, force=self.force):
                tell(f"{one.path}\n{one.word}: {one.vectors} vector{'s'[: one.vectors > 1]}. In diffusers:")
                tell("\n".join(f"  {call}" for call in one.diffusers))
            if patch.deltas:
                tell("The patch changes weights, too: export them with --format peft or kohya, and use both.")
            return 0
        done = export_patch(patch, host, self.format, self.out, rank=self.rank, half=self.half, force=self.force)
        tell(f"{done.path}\n{done.layers} layers of rank {done.rank}, {done.nbytes / 2**20:.1f} MiB")
        if done.lost:
            worst = max(done.lost, key=lambda key: done.lost[key])
            tell(
                f"Rank {done.rank} leaves out {done.lost_in_all:.1%} of the change (in Frobenius norm), at most "
                f"{done.lost[worst]:.1%}, of {worst}. Measure what that does: palimpsest audit --after {done.path}"
            )
        if patch.words and self.format != "bundle":
            tell(f"The words {', '.join(sorted(patch.words))} are no part of it: export them with --format embedding.")
        if done.nbytes > 2 * patch.nbytes():
            high, low = done.own_rank
            tell(f"The patch itself has {patch.nbytes() / 2**20:.1f} MiB: its changes have ranks from {low} to {high}.")
        return 0

    def _whole(self, patch: Any, host: Any) -> int:
        from palimpsest.export import export_pipeline

        if host is None:
            raise BadRequest("A pipeline is the whole model: give --model.")
        done = export_pipeline(patch, host, self.out, force=self.force)
        tell(f"{done.path}\n{done.nbytes / 2**20:.1f} MiB. In diffusers:")
        tell(f"  DiffusionPipeline.from_pretrained({str(done.path)!r})")
        for word, tokens in done.tokens.items():
            tell(f"{word}: {len(tokens)} token{'s'[: len(tokens) > 1]} of the tokenizers")
        return 0

    def _published(self, patch: Any, host: Any) -> int:
        from palimpsest.run import publish

        if host is None:
            raise BadRequest("A model card names the model: give --model.")
        beside = self.patch.parent if (self.patch.parent / "receipt.json").is_file() else None
        done = publish(
            patch, host, self.out, receipt=self.receipt or beside, base_model=self.base_model, licence=self.licence,
            rank=self.rank, half=self.half, force=self.force,
        )  # fmt: skip
        tell(f"{done.path}: {', '.join(done.files)}")
        if done.why_not:
            tell(f"No LoRA is among them: {done.why_not}")
        tell("Read README.md before you upload: it says what the receipt says.")
        return 0
