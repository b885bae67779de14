"""SalUn is held to the family's rule."""

CAUSE = "likely because its steps are few for a face"
