"""The plans blocks: what is accepted, and what the refusals say."""

import math
from dataclasses import fields

import pytest

from nnunet_ssl.errors import SettingsError
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.methods.mae import MAEConfig
from nnunet_ssl.recipes import (
    DEVIATIONS,
    FINETUNING,
    PRETRAINING,
    SCRATCH,
    Recipe,
    WarmupPolyLR,
    build_optimizer,
    pretraining,
    resolve,
)
from nnunet_ssl.settings.blocks import FinetuneSettings, PretrainBlock, PretrainSettings, read_config


def test_empty_block_gives_the_defaults():
    assert PretrainBlock.read({}, method_names(), "3d_fullres").of("mae", MAEConfig) == (
        PretrainSettings(),
        MAEConfig(),
    )


def test_method_blocks_are_told_from_settings():
    block = PretrainBlock.read({"ssl": {"seed": 3, "mae": {"mask_ratio": 0.6}}}, method_names(), "3d_fullres")
    settings, config = block.of("mae", MAEConfig)
    assert (settings.seed, config.mask_ratio) == (3, 0.6)


def test_unknown_key_names_the_known_ones_and_the_nearest():
    with pytest.raises(
        SettingsError, match=r"'num_epoch'. Did you mean 'num_epochs'\? Known settings: .*warmup_epochs"
    ):
        PretrainBlock.read({"ssl": {"num_epoch": 3}}, method_names(), "3d_fullres")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"num_epochs": 0}, "num_epochs must be a whole number >= 1"),
        ({"num_epochs": 2.5}, "num_epochs must be a whole number >= 1"),
        ({"batch_size": "eight"}, "batch_size must be a whole number"),
        ({"optimizer": "lion"}, '"sgd" or "adamw"'),
        ({"initial_lr": "fast"}, "initial_lr must be a number"),
        ({"accumulate": 0}, "accumulate must be a whole number >= 1"),
        ({"accumulate": True}, "accumulate must be a whole number >= 1"),
        ({"accumulate": 4, "batch_size": 6}, r"batch of 6 .* accumulate = 4 equal parts.*--batch-size 8"),
        ({"deterministic": "maybe"}, "deterministic is true or false"),
        ({"channels": "both"}, '"separate" or "together"'),
    ],
)
def test_wrong_values(block, message):
    with pytest.raises(SettingsError, match=message):
        read_config(PretrainSettings, block, "here")


def test_finetune_transfer():
    with pytest.raises(SettingsError, match=r"encoder\+decoder"):
        read_config(FinetuneSettings, {"transfer": "everything"}, "here")


@pytest.mark.parametrize("config", [{"mask_ratio": 1.0}, {"mask_ratio": 0}, {"mask_block": 0}, {"decoder_depth": 0}])
def test_mae_config_refuses(config):
    with pytest.raises(SettingsError, match=next(iter(config))):
        read_config(MAEConfig, config, "mae")


def test_published_recipes():
    unet = resolve(PRETRAINING, "unet", PretrainSettings())
    primus = resolve(PRETRAINING, "primus", PretrainSettings())
    assert (unet.optimizer, unet.initial_lr, unet.weight_decay, unet.warmup_epochs) == ("sgd", 1e-2, 3e-5, 0)
    assert (primus.optimizer, primus.initial_lr, primus.weight_decay, primus.warmup_epochs) == ("adamw", 3e-4, 5e-2, 50)
    for epochs, warmup in ((1000, 50), (300, 15), (150, 15), (30, 3), (9, 0), (4000, 50)):
        assert resolve(FINETUNING, "unet", FinetuneSettings(num_epochs=epochs)).warmup_epochs == warmup
    assert resolve(SCRATCH, "primus", FinetuneSettings()).initial_lr == 3e-4


def test_another_optimiser_brings_its_own_numbers():
    recipe = resolve(PRETRAINING, "unet", PretrainSettings(optimizer="adamw", num_epochs=20))
    assert (recipe.initial_lr, recipe.grad_clip, recipe.num_epochs) == (3e-4, 1.0, 20)


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="Set warmup_epochs below num_epochs"):
        resolve(PRETRAINING, "unet", PretrainSettings(num_epochs=5, warmup_epochs=5))


def test_schedule_follows_the_formula():
    import torch

    recipe = resolve(PRETRAINING, "primus", PretrainSettings())
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], recipe)
    schedule = WarmupPolyLR(optimizer, recipe)
    assert schedule.lr(0) == pytest.approx(6e-6)
    assert schedule.lr(1) == pytest.approx(1.2e-5)
    assert schedule.lr(49) == pytest.approx(3e-4)
    assert schedule.lr(525) == pytest.approx(3e-4 * 0.5**0.9)
    schedule.step(999)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(3e-4 * (1 / 950) ** 0.9)


def test_a_task_may_have_general_settings_of_its_own():
    ssl = {"initial_lr": 1e-3, "batch_size": 8, "voco": {"initial_lr": 1e-4, "target_crops": 8}}
    block = PretrainBlock.read({"ssl": ssl}, method_names(), "3d_fullres")
    settings, config = block.of("voco", get_method("voco").Config)
    assert (settings.initial_lr, settings.batch_size, config.target_crops) == (1e-4, 8, 8)
    assert block.of("mae", MAEConfig)[0].initial_lr == 1e-3
    with pytest.raises(SettingsError, match=r'\["ssl"\]\["voco"\]: batch_size must be'):
        PretrainBlock.read({"ssl": {"voco": {"batch_size": 0}}}, method_names(), "x").of(
            "voco", get_method("voco").Config
        )
    with pytest.raises(SettingsError, match=r'\["voco"\] must be a JSON object'):
        PretrainBlock.read({"ssl": {"voco": 3}}, method_names(), "x").of("voco", get_method("voco").Config)


def test_what_differs_from_the_recipe_by_task():
    assert resolve(pretraining("simclr"), "unet", PretrainSettings()).max_norm == 0.1
    assert resolve(pretraining("voco"), "unet", PretrainSettings()).max_norm == math.inf
    assert resolve(pretraining("voco"), "primus", PretrainSettings()).max_norm == 1.0
    assert resolve(pretraining("simclr"), "unet", PretrainSettings(grad_clip=3.0)).max_norm == 3.0
    # Another optimiser brings all its numbers along, warm-up included; the other network's clipping is none of them.
    tiny = resolve(pretraining("simclr"), "unet", PretrainSettings(optimizer="adamw", initial_lr=1e-3, num_epochs=50))
    assert (tiny.initial_lr, tiny.warmup_epochs, tiny.max_norm) == (1e-3, 5, 1.0)
    # Where all of a task's recipes have the same optimiser, the other one's numbers are the usual ones.
    for backbone in ("unet", "primus"):
        assert resolve(pretraining("self_distillation"), backbone, PretrainSettings()).optimizer == "adamw"
        sgd = resolve(pretraining("self_distillation"), backbone, PretrainSettings(optimizer="sgd"))
        assert (sgd.optimizer, sgd.initial_lr, sgd.grad_clip) == ("sgd", 1e-2, 12.0)


def test_every_deviation_names_a_task_its_fields_and_its_source():
    for (method, network), values in DEVIATIONS.items():
        assert method in method_names()
        assert network in get_method(method).backbones
        assert values["source"]
        assert set(values) <= {field.name for field in fields(Recipe)}
