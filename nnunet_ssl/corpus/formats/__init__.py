"""One file per kind of image file: what its header says, and how a volume of it is read.

Each has `header(path) -> Header`; those that nnU-Net's own readers do not open, or not volume by volume, also have
`read(path, volume)`. `reader.py` and `headers.py` one level up choose by the ending.
"""
