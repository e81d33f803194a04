"""The pre-training trainers that nnU-Net's users name, one per pretext task: SSLMAETrainer, SSLSimCLRTrainer, ...

They differ in the name of their task and in nothing else, so they are made from the installed tasks when they are first asked
for (PEP 562): `from nnunet_ssl.trainers.pretraining import SSLMAETrainer` works as if it stood here. The backbone comes from the
plans. A package whose task needs more of its trainer registers one of that name, and that one is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnunet_ssl.integration.class_lookup import find_registered
from nnunet_ssl.methods import TRAINERS, get_method, trainer_names
from nnunet_ssl.trainers.ssl_trainer import SSLTrainer


def trainer_class(method: str) -> type[SSLTrainer]:
    """The trainer of an installed task; raises SettingsError for others, listing the known ones."""
    get_method(method)
    return find_registered(TRAINERS, next(name for name, task in trainer_names().items() if task == method))


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in trainer_names():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        method = trainer_names()[name]
        own = {"method_name": method, "__module__": __name__, "__doc__": f"Pre-training with the task {method}."}
        return globals().setdefault(name, type(name, (SSLTrainer,), own))
