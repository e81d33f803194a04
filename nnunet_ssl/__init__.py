"""Self-supervised pre-training as a plugin of nnU-Net v2."""

# Nothing heavy may be imported here: torch imports this package at the end of every `import torch`.
from nnunet_ssl._autoload import autoload

__version__ = "0.1.0"

autoload()
