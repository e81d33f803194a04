"""From an image as it was stored to what training reads: one case at a time."""
