"""ANT is held to the family's rule."""

CAUSE = (
    "likely because training ends half way: reversing the concept by hand in the same steps erased four other "
    "concepts, so the boundary is not what leaves it; nothing in its loss keeps neighbours"
)
