"""What `import nnunet_ssl` offers: all of it is there and documented (tests/unit/test_imports.py: and costs nothing)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import nnunet_ssl
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.trainers.pretraining import SSLMAETrainer

CHECKOUT = Path(__file__).resolve().parents[2]


def test_every_public_name_is_there_and_documented():
    page = (CHECKOUT / "docs" / "api.md").read_text()
    for name in nnunet_ssl.PUBLIC:
        assert getattr(nnunet_ssl, name) is not None
        assert f"`{name}`" in page
    assert set(re.findall(r"^\| `(\w+)`", page, re.M)) <= set(nnunet_ssl.__all__)
    assert set(nnunet_ssl.__all__) <= set(dir(nnunet_ssl))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nnunet_ssl.nothing


def test_the_example_imports_nothing_else():
    text = (CHECKOUT / "examples" / "denoising" / "denoising.py").read_text()
    assert set(re.findall(r"^(?:from|import) (nnunet_ssl[\w.]*)", text, re.M)) == {"nnunet_ssl"}


@pytest.mark.parametrize("kind", ["unet", "primus"])
def test_a_network_for_ones_own_training(kind, make_trainer, plans_for, tmp_path):
    plans = plans_for(kind)
    trainer = make_trainer(SSLMAETrainer, plans)
    trainer.initialize()
    file = str(tmp_path / "checkpoint.pth")
    trainer.save_checkpoint(file)
    trained = trainer.method.bare_network.state_dict()
    for given in ({}, {"plans": plans}):
        network = nnunet_ssl.load_network(file, output_channels=3, transfer="encoder+decoder", **given)
        state = network.state_dict()
        assert state.keys() == trained.keys()
        equal = [name for name in state if state[name].shape == trained[name].shape]
        assert all(torch.equal(state[name], trained[name]) for name in equal)
        assert len(equal) > 0.8 * len(state)
        assert network(torch.zeros(1, 1, 16, 24, 16)).shape == (1, 3, 16, 24, 16)
        assert "loaded" in network.nnunet_ssl_transfer_report.table()
    assert nnunet_ssl.load_network(file, input_channels=2)(torch.zeros(1, 2, 16, 24, 16)).shape == (1, 2, 16, 24, 16)
    with pytest.raises(CheckpointError, match=r"no configuration '2d'\. Known: 3d_fullres"):
        nnunet_ssl.load_network(file, plans=plans, configuration="2d")
