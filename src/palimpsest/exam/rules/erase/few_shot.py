"""Few-shot unlearning is held to the family's rule."""

CAUSE = "likely because its loss has no lower bound and rises on words that all prompts share"
