"""Self-supervised pre-training as a plugin of nnU-Net v2.

What this package offers to programs is named here (`docs/api.md`), and only that is kept stable. Each name is imported when it is
first asked for (PEP 562): torch imports this package at the end of every `import torch`, and nothing heavy may come with it.
"""

from typing import Any

from nnunet_ssl._autoload import autoload
from nnunet_ssl.version import __version__ as __version__

# What is public, by the module it lives in; "module:name" where it has another name there, "module:" for the module itself.
PUBLIC = {
    # Pretext tasks
    "Method": "nnunet_ssl.methods.base",
    "MethodOutput": "nnunet_ssl.methods.base",
    "get_method": "nnunet_ssl.methods",
    "method_names": "nnunet_ssl.methods",
    "SSLTrainer": "nnunet_ssl.trainers.ssl_trainer",
    "Views": "nnunet_ssl.views.spec",
    "rng": "nnunet_ssl.views.rng:",
    "masks": "nnunet_ssl.views.masks:",
    # What a setting may be
    "Bounds": "nnunet_ssl.settings.bounds",
    "Count": "nnunet_ssl.settings.bounds",
    "NotNegative": "nnunet_ssl.settings.bounds",
    "PerAxis": "nnunet_ssl.settings.bounds",
    "Positive": "nnunet_ssl.settings.bounds",
    "Probability": "nnunet_ssl.settings.bounds",
    "Rate": "nnunet_ssl.settings.bounds",
    "Share": "nnunet_ssl.settings.bounds",
    # Losses and indicators
    "constant_error": "nnunet_ssl.losses.reconstruction",
    "explained_variance": "nnunet_ssl.losses.reconstruction",
    "masked_error": "nnunet_ssl.losses.reconstruction",
    "masked_mse": "nnunet_ssl.losses.reconstruction",
    "nt_xent": "nnunet_ssl.losses.nt_xent",
    "embedding_health": "nnunet_ssl.losses.embeddings:health",
    # Checkpoints
    "read_checkpoint": "nnunet_ssl.checkpoints.read",
    "resolve_source": "nnunet_ssl.checkpoints.hub.resolve",
    "describe_checkpoint": "nnunet_ssl.checkpoints.description.describe:describe",
    "adapt_checkpoint": "nnunet_ssl.checkpoints.adaptation.adapt",
    "load_into": "nnunet_ssl.integration.pretrained_weights",
    "load_network": "nnunet_ssl.integration.load_network",
    "load_encoder": "nnunet_ssl.features.encoder",
    "ExportOptions": "nnunet_ssl.checkpoints.export.portable",
    "export_nnssl": "nnunet_ssl.checkpoints.export.formats",
    "export_safetensors": "nnunet_ssl.checkpoints.export.formats",
    # Errors that a user can mend
    "NnunetSSLError": "nnunet_ssl.errors",
}

__all__ = ["__version__", *PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'nnunet_ssl' has no attribute {name!r}")
    from importlib import import_module

    place, colon, other = PUBLIC[name].partition(":")
    module = import_module(place)
    value = module if colon and not other else getattr(module, other or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})


autoload()
