"""What single papers claim, said so that it can be measured: `rules/<verb>/<leaf>.py`, found by path."""
