"""Settings tried before anything is prepared: what would stop a training at its start stops it before the preprocessing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.corpus.datasets import load_configuration
from nnunet_ssl.errors import NnunetSSLError
from nnunet_ssl.methods import get_method, method_names, views_of
from nnunet_ssl.recipes import pretraining, resolve
from nnunet_ssl.settings.blocks import PretrainBlock
from nnunet_ssl.trainers.data.loading import share_of_batch
from nnunet_ssl.trainers.loop.building import build_method


def rehearse(plans: Mapping[str, Any], configuration: str, method: str, processes: int) -> None:
    """Read the settings, cut the views and put network and task together, without memory: a fraction of a second.

    Raises SettingsError and BackboneError as the training itself would.
    """
    load_configuration(dict(plans), configuration)
    manager = PlansManager(dict(plans)).get_configuration(configuration)
    method_class = get_method(method)
    block = PretrainBlock.read(manager.configuration, method_names(), configuration)
    config: Any
    settings, config = block.of(method, method_class.Config)
    views = views_of(method_class, config, manager.patch_size)
    share_of_batch(settings.batch_size or manager.batch_size, processes, settings.accumulate)
    channels = 1 if settings.channels == "separate" else len(manager.normalization_schemes)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the training gives them
            built = build_method(method_class, config, manager, channels, views, plain=True)
        resolve(pretraining(method), built.backbone.kind, settings)
    except NnunetSSLError:
        raise
    except Exception:
        pass  # what cannot be put together without memory is no mistake of the user's: the training itself will tell


def rehearse_sizes(
    plans: Mapping[str, Any], configuration: str, method: str, processes: int, sizes: Sequence[Sequence[int]]
) -> None:
    """`rehearse` for plans whose patch size is not known yet; raises the error of the first size where all fail."""
    first = None
    for size in sizes:
        entries = {**plans["configurations"][configuration], "patch_size": list(size)}
        tried = {**plans, "configurations": {**plans["configurations"], configuration: entries}}
        try:
            rehearse(tried, configuration, method, processes)
            return
        except NnunetSSLError as error:
            first = first or error
    if first is not None:
        raise first
