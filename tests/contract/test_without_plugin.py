"""Our checkpoints in an nnU-Net that has never heard of us."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import torch

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nnunet_ssl":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

plans, dataset_json, checkpoint = json.load(open(sys.argv[1])), json.load(open(sys.argv[2])), sys.argv[3]
plans["continue_training"] = False
trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
trainer.initialize()
load_pretrained_weights(trainer.network, checkpoint, verbose=False)
saved = torch.load(checkpoint, weights_only=True)["network_weights"]
loaded = trainer.network.state_dict()
assert all(torch.equal(loaded[k], saved[k]) for k in loaded if ".seg_layers." not in k)
assert not any(m.startswith("nnunet_ssl") for m in sys.modules)
print("loaded without the plugin")
"""


@pytest.mark.parametrize("fold", ["all"])
def test_stock_loader_loads_our_checkpoint(fold, make_trainer, plans_for, dataset_json, run_command, tmp_path):
    from nnunet_ssl.trainers.pretraining import SSLMAETrainer

    plans = plans_for("unet", {"num_epochs": 1})
    trainer = make_trainer(SSLMAETrainer, plans, fold)
    trainer.run_training()
    files = {"plans.json": plans, "dataset.json": deepcopy(dataset_json)}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "script.py").write_text(SCRIPT)
    checkpoint = Path(trainer.output_folder) / "checkpoint_final.pth"
    arguments = ["python", tmp_path / "script.py", tmp_path / "plans.json", tmp_path / "dataset.json", checkpoint]
    done = run_command(arguments, {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}, cwd=tmp_path)
    assert "loaded without the plugin" in done.stdout
