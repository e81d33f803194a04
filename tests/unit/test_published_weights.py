"""The newest published weights, small, as the programs of their makers write them: nnFoundation, MultiTalent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssl.checkpoints.networks.source import stated_network
from nnunet_ssl.checkpoints.networks.spec import checked_spec
from nnunet_ssl.cli.info import main as info
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.integration.architecture import spec_of
from nnunet_ssl.integration.load_network import load_network


def plan_of_nnfoundation_vit(**changes: Any) -> dict[str, Any]:
    """The adaptation plan as nnssl's nnFoundationViT trainer writes it: 14 arguments, the pre-training's own among them."""
    kwargs = {
        "input_channels": 1,
        "embed_dim": 1056,
        "patch_embed_size": [8, 8, 8],
        "output_channels": 1,
        "input_shape": [192, 192, 192],
        "encoder_eva_depth": 40,
        "encoder_eva_numheads": 16,
        "decoder_eva_depth": 8,
        "decoder_eva_numheads": 16,
        "patch_drop_rate": 0.8,
        "drop_path_rate": 0.2,
        "attn_drop_rate": 0.0,
        "init_values": 0.1,
        "scale_attn_inner": True,
        **changes,
    }
    configuration = {"spacing": None, "spacing_style": "noresample", "patch_size": [192, 192, 192]}
    return {
        "architecture_plans": {
            "arch_class_name": "PrimusX",
            "arch_kwargs": kwargs,
            "arch_kwargs_requiring_import": None,
        },
        "pretrain_plan": {
            "configurations": {"noresample": {**configuration, "normalization_schemes": ["ZScoreNormalization"]}}
        },
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [192, 192, 192],
        "key_to_encoder": "eva",
        "key_to_stem": "down_projection",
        "keys_to_in_proj": ["down_projection.proj"],
        "key_to_lpe": "eva.pos_embed",
    }


def test_primusx_of_nnfoundation() -> None:
    network = stated_network({"nnssl_adaptation_plan": plan_of_nnfoundation_vit()})
    assert network is not None
    assert (network.kwargs["eva_depth"], network.kwargs["eva_numheads"]) == (40, 16)
    assert (network.kwargs["init_values"], network.kwargs["drop_path_rate"]) == (0.1, 0.2)
    assert str(network) == "Primus (width 1056, depth 40, 16 heads)"
    (note,) = network.notes
    for dropped in ("input_channels 1", "output_channels 1", "decoder_eva_depth 8", "decoder_eva_numheads 16"):
        assert dropped in note
    assert "patch_drop_rate 0.8 (hides tokens, in pre-training alone)" in note
    old_form = stated_network({"nnssl_adaptation_plan": plan_of_nnfoundation_vit(init_values=[0.1])})
    assert old_form is not None
    assert old_form.kwargs["init_values"] == 0.1
    with pytest.raises(CheckpointError, match="encoder_eva_depth and eva_depth of its encoder"):
        stated_network({"nnssl_adaptation_plan": plan_of_nnfoundation_vit(eva_depth=3)})
    with pytest.raises(CheckpointError, match="not on our list: use_gated_attention"):
        stated_network({"nnssl_adaptation_plan": plan_of_nnfoundation_vit(use_gated_attention=True)})


def test_a_vit_that_was_trained_with_few_tokens_sees_all_of_them(tmp_path: Path, capsys) -> None:
    """nnFoundation's ViT, small: described, planned and built without what its pre-training alone had."""
    small = {"embed_dim": 36, "encoder_eva_depth": 2, "encoder_eva_numheads": 2, "input_shape": [16, 16, 16]}
    names = {"embed_dim": 36, "patch_embed_size": [8] * 3, "eva_depth": 2, "eva_numheads": 2, "init_values": 0.1}
    bare = checked_spec("Primus", {**names, "scale_attn_inner": True}, "a test").build_empty(1, 2, (16, 16, 16))
    encoder = {n: torch.randn(t.shape) for n, t in bare.state_dict().items() if not n.startswith("up_projection.")}
    decoder = {"decoder.blocks.0.norm1.weight": torch.ones(36), "mask_token": torch.zeros(1, 1, 36)}
    plan = plan_of_nnfoundation_vit(**small)
    plan["pretrain_plan"]["configurations"]["noresample"]["patch_size"] = [16, 16, 16]
    torch.save({"network_weights": {**encoder, **decoder}, "nnssl_adaptation_plan": plan}, tmp_path / "vit.pth")
    info([str(tmp_path / "vit.pth"), "--json"])
    described = json.loads(capsys.readouterr().out)
    assert described["problem"] is None
    assert "patch_drop_rate" not in described["architecture"]["arch_kwargs"]
    assert any("patch_drop_rate 0.8" in note for note in described["notes"])
    network = load_network(tmp_path / "vit.pth").train()
    assert any("patch_drop_rate 0.8" in note for note in network.nnunet_ssl_transfer_report.notes)
    seen = []
    network.eva.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    network(torch.randn(1, 1, 16, 16, 16))
    assert seen == [8]
    # Plans written before this was known name it still.
    architecture = {
        **described["architecture"],
        "arch_kwargs": {**described["architecture"]["arch_kwargs"], "patch_drop_rate": 0.8},
    }
    assert "patch_drop_rate" not in spec_of({"architecture": architecture}, "the plans").kwargs
