"""Frozen features of a pre-trained encoder: of an image, of its regions, of every place in it; from Python and by command."""
