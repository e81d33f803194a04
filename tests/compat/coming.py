"""The changes that nnU-Net's development branch announces, each applied to the nnU-Net that is installed.

As a script: `python tests/compat/coming.py CHANGE[,CHANGE...] COMMAND ARGUMENT...` runs a console script (or `-` and a Python
file) with them; "all" is all of them. Every process that it spawns has them as well. Each change is small: some lines of
nnU-Net's own source, replaced while it is loaded. Where the installed nnU-Net has no such lines any more, it has probably made
the change itself: this says so, and the change can go.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import runpy
import sys
from importlib.metadata import entry_points

VARIABLE = "NNUNET_SSL_COMING"  # the changes, for spawned processes
TRAINER = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
DATASET = "nnunetv2.training.dataloading.nnunet_dataset"
RESAMPLING = "nnunetv2.preprocessing.resampling.default_resampling"

Edit = tuple[str, str, str]  # module, what stands there, what will

CHANGES: dict[str, list[Edit]] = {
    # `local_rank` counts within the node; what one process does alone, the globally first one does.
    "ranks": [
        (
            TRAINER,
            "        self.local_rank = 0 if not self.is_ddp else dist.get_rank()\n",
            "        self.global_rank = dist.get_rank() if self.is_ddp else 0\n"
            "        self.world_size = dist.get_world_size() if self.is_ddp else 1\n"
            "        self.local_rank = int(os.environ.get('LOCAL_RANK', 0)) if self.is_ddp else 0\n"
            "        self.local_world_size = int(os.environ.get('LOCAL_WORLD_SIZE', 1)) if self.is_ddp else 1\n",
        ),
        (TRAINER, "if self.local_rank == 0", "if self.global_rank == 0"),
        (TRAINER, "val_keys[self.local_rank::", "val_keys[self.global_rank::"),
    ],
    # All processes make the split together, or none does: the first one reads or writes the file, the others are told.
    "split": [
        (
            TRAINER,
            "    def do_split(self):\n",
            "    def do_split(self):\n"
            "        if not self.is_ddp:\n"
            "            return self._split_of_one()\n"
            "        told = [self._split_of_one() if dist.get_rank() == 0 else None]\n"
            "        dist.broadcast_object_list(told, src=0)\n"
            "        return told[0]\n\n"
            "    def _split_of_one(self):\n",
        )
    ],
    # Process groups are for GPUs alone.
    "cuda": [
        (
            TRAINER,
            "        self.device = device\n\n        # print what device we are using\n",
            "        self.device = device\n"
            "        if self.is_ddp:\n"
            "            assert device.type == 'cuda', 'DDP only works with CUDA devices'\n",
        )
    ],
    # SIGUSR1 ends the training after the epoch; the handler is put in place at every epoch's start.
    "signal": [
        (
            TRAINER,
            "    def on_train_epoch_start(self):\n",
            "    def on_train_epoch_start(self):\n"
            "        import signal\n"
            "        signal.signal(signal.SIGUSR1, lambda *_: setattr(self, '_leave', True))\n",
        ),
        (
            TRAINER,
            "            self.on_epoch_end()\n",
            "            self.on_epoch_end()\n"
            "            if getattr(self, '_leave', False):\n"
            "                print('nnU-Net leaves after the epoch')\n"
            "                sys.exit(0)\n",
        ),
    ],
    # The optimiser comes before torch.compile and DDP.
    "optimiser": [
        (
            TRAINER,
            "            # compile network for free speedup\n",
            "            self.optimizer, self.lr_scheduler = self.configure_optimizers()\n"
            "            # compile network for free speedup\n",
        ),
        (
            TRAINER,
            "                self.network = torch.compile(self.network)\n\n"
            "            self.optimizer, self.lr_scheduler = self.configure_optimizers()\n",
            "                self.network = torch.compile(self.network)\n\n",
        ),
    ],
    # Labels of a former stage are not loaded with the case.
    "load_case": [
        (DATASET, "return data, seg, seg_prev, properties", "return data, seg, properties"),
        (TRAINER, "data, _, seg_prev, properties = dataset_val.load_case(k)", "data, _, properties = dataset_val.load_case(k)"),
        ("nnunetv2.training.dataloading.data_loader", "data, seg, seg_prev, properties =", "data, seg, properties ="),
        ("nnunetv2.training.dataloading.data_loader", "if seg_prev is not None:", "if False:"),
    ],
    # Which of the labels that share a voxel gets it is an argument.
    "tiebreak": [
        (
            RESAMPLING,
            "                                  separate_z_anisotropy_threshold: float = ANISO_THRESHOLD):\n"
            '    """\n    needed for segmentation export. Stupid, I know\n',
            "                                  separate_z_anisotropy_threshold: float = ANISO_THRESHOLD,\n"
            "                                  *, seg_tiebreak: str = 'nearest'):\n"
            '    """\n    needed for segmentation export. Stupid, I know\n',
        ),
    ],
}  # fmt: skip


def apply(names: list[str]) -> None:
    """Load the modules that the changes concern, with them."""
    edits: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        for module, old, new in CHANGES[name]:
            edits.setdefault(module, []).append((old, new))
    for module in sorted(edits, key=lambda name: name == TRAINER):  # the trainer imports the others
        load_changed(module, edits[module])


def load_changed(name: str, edits: list[tuple[str, str]]) -> None:
    """Load a module with parts of its source replaced."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        source = file.read()
    for old, new in edits:
        assert old in source, f"{name} has no such lines any more, so this change of tests/compat can go:\n{old}"
        source = source.replace(old, new)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(source, spec.origin, "exec"), module.__dict__)
    parent, _, leaf = name.rpartition(".")
    setattr(importlib.import_module(parent), leaf, module)


def main(changes: str, command: str, *arguments: str) -> None:
    """Run a command in this process, or with "-" the Python file that is the first argument."""
    if command == "-":
        sys.argv = list(arguments)
        sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
        runpy.run_path(arguments[0], run_name="__main__")
        return
    (found,) = entry_points(group="console_scripts", name=command)
    sys.argv = [command, *arguments]
    sys.exit(found.load()())


if __name__ == "__main__":
    os.environ[VARIABLE] = ",".join(CHANGES) if sys.argv[1] == "all" else sys.argv[1]
if __name__ in ("__main__", "__mp_main__"):  # spawned processes load this file under the second name
    apply(os.environ[VARIABLE].split(","))
if __name__ == "__main__":
    main(*sys.argv[1:])
