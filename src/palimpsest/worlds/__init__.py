"""Drawn worlds whose truth is known: Glyphs and Faces, with labels, masks and captions for every picture."""
