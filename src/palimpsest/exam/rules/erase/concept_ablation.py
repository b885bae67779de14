"""Concept Ablation is held to the family's rule."""

CAUSE = (
    "likely because words around the name that were not trained on leave some of its push at the first steps of "
    "sampling, and these decide colour and style"
)
