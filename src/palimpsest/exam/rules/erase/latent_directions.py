"""Latent directions is held to the family's rule."""

CAUSE = "likely because the skips carry the concept past the bottleneck that it moves"
