"""Did you mean: what is like a name, whatever its case and dashes, and what is not."""

from __future__ import annotations

import pytest

from nnunet_ssl.integration.class_lookup import find
from nnunet_ssl.nearest import did_you_mean, nearest


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [
        ("mea", ("mae", "voco"), "mae"),
        ("ResEncL", ("resenc_l", "primus_m"), "resenc_l"),
        ("--batch_size", ("--batch-size", "--lr"), "--batch-size"),
        ("SSLMEATrainer", ("SSLMAETrainer", "SSLVoCoTrainer"), "SSLMAETrainer"),
        ("patients", ("images", "subjects", "modalities", "datasets"), None),
        ("", ("mae",), None),
        ("x", (), None),
    ],
)
def test_nearest(typed, known, meant):
    assert nearest(typed, known) == meant
    assert did_you_mean(typed, known) == (f" Did you mean {meant}?" if meant else "")


def test_nnunets_own_search_is_helped(capsys):
    """Stock nnUNetv2_train -tr SSLMEATrainer: nnU-Net's error follows, which does not know the plugin's names."""
    assert find(lambda *_: None, "folder", "SSLMEATrainer", "nnunetv2.training.nnUNetTrainer") is None
    assert "There is no SSLMEATrainer. Did you mean SSLMAETrainer?" in capsys.readouterr().err
    assert find(lambda *_: None, "folder", "theirs", "nnunetv2.training.nnUNetTrainer") is None
    assert capsys.readouterr().err == ""
