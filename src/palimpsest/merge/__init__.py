"""Systems that make one change of several."""

from palimpsest.core.verb import Verb

VERB = Verb(
    does="Merge changes of one model: patches, LoRAs, embeddings, fine-tuned models. Writes a patch and its receipt.",
    makes="Combine",
    subject="merged",
    default="task_arithmetic",
    asks=("parts",),
    out="merged",
    examples=(
        "palimpsest merge no-star/patch.safetensors crown/patch.safetensors --model tiny/sd --out both",
        "palimpsest merge a.safetensors b.safetensors --model my-model --method ties --density 0.2 --dry-run",
        "palimpsest merge one-finetune another --model their-base --method diffusion_soup --stream --out soup",
    ),
)
