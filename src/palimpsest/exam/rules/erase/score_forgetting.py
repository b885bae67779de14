"""Score Forgetting is held to the family's rule."""

CAUSE = "likely because a generator of one step needs more steps of training than it has here"
