"""Fine-tuning schedules: the published phases, what really trains, and resuming from every epoch."""

from __future__ import annotations

import io
import re
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from nnunet_ssl.errors import SettingsError
from nnunet_ssl.finetune.layers import encoder_parameters, layers
from nnunet_ssl.finetune.phases import Phases
from nnunet_ssl.finetune.schedules import SCHEDULE_NAMES, USED, make_schedule
from nnunet_ssl.recipes import FINETUNING, resolve
from nnunet_ssl.settings.blocks import FinetuneSettings, read_config

SHORT = FinetuneSettings(num_epochs=10, decoder_epochs=4, warmup_epochs=2, initial_lr=1e-2)  # sawtooth: 0, 2, 4, 6
INPUTS = {"unet": (2, 1, 16, 16), "primus": (2, 1, 16, 16, 16)}


def unet(block: type = ResidualEncoderUNet, dropout: float = 0.0) -> nn.Module:
    counts = "n_blocks_per_stage" if block is ResidualEncoderUNet else "n_conv_per_stage"
    return block(
        1, 3, (4, 6, 8), nn.Conv2d, 3, (1, 2, 2), num_classes=2, n_conv_per_stage_decoder=1, conv_bias=True,
        norm_op=nn.InstanceNorm2d, norm_op_kwargs={"affine": True}, dropout_op=nn.Dropout2d, dropout_op_kwargs={"p": dropout},
        nonlin=nn.LeakyReLU, **{counts: 1},
    )  # fmt: skip


def primus(drop_path_rate: float = 0.0) -> nn.Module:
    return Primus(
        1, 36, (8, 8, 8), 2, eva_depth=3, eva_numheads=1, input_shape=(16, 16, 16), drop_path_rate=drop_path_rate,
        init_values=0.1, scale_attn_inner=True,
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {"unet": unet, "primus": primus}


def make(backbone: str, name: str, settings: FinetuneSettings = SHORT, fresh: tuple[str, ...] = ()) -> Phases:
    torch.manual_seed(0)
    recipe = resolve(FINETUNING, backbone, settings)
    return Phases(NETWORKS[backbone](), recipe, make_schedule(name, recipe, settings), fresh)


def train_epoch(phases: Phases, backbone: str, epoch: int) -> None:
    """One epoch of one step, in the order of nnU-Net's loop."""
    phases.enter(epoch)
    phases.network.train()
    phases.step(epoch)
    phases.set_modes()
    torch.manual_seed(epoch)
    phases.optimizer.zero_grad(set_to_none=True)
    phases.network(torch.randn(INPUTS[backbone])).square().mean().backward()
    phases.optimizer.step()


def boundaries(name: str, backbone: str, num_epochs: int, **settings: object) -> list[int]:
    chosen = FinetuneSettings(num_epochs=num_epochs, **settings)
    schedule = make_schedule(name, resolve(FINETUNING, backbone, chosen), chosen)
    assert [p.first for p in schedule.phases[1:]] == [p.last + 1 for p in schedule.phases[:-1]]
    assert schedule.phases[-1].last == num_epochs - 1
    return [p.first for p in schedule.phases]


@pytest.mark.parametrize("backbone", NETWORKS)
def test_published_lengths(backbone):
    assert boundaries("sawtooth", backbone, 1000) == [0, 25, 50, 100]
    assert boundaries("sawtooth", backbone, 150) == [0, 7, 15, 30]
    assert boundaries("valley", backbone, 1000) == [0, 50, 100]
    assert boundaries("valley", backbone, 150) == [0, 15, 30]
    for name in ("warmup", "layer_decay"):
        assert boundaries(name, backbone, 1000) == [0, 50]
        assert boundaries(name, backbone, 150) == [0, 15]
    assert boundaries("poly", backbone, 150) == boundaries("frozen", backbone, 1000) == [0]
    assert boundaries("sawtooth", backbone, 40) == [0, 2, 4, 8]
    assert boundaries("sawtooth", backbone, 150, warmup_epochs=50) == [0, 7, 15, 65]  # the published one of Primus
    assert boundaries("sawtooth", backbone, 5) == [0]


def test_sawtooth_follows_the_formulas():
    settings = FinetuneSettings(num_epochs=150, decoder_lr=1e-5)
    schedule = make_schedule("sawtooth", resolve(FINETUNING, "primus", settings), settings)
    assert schedule.lr(0) == pytest.approx(1e-5 / 7)
    assert schedule.lr(6) == schedule.lr(7) == pytest.approx(1e-5)
    assert schedule.lr(14) == pytest.approx(1e-5 * (1 / 8) ** 0.9)
    assert schedule.lr(15) == pytest.approx(1e-4 / 15)
    assert schedule.lr(29) == schedule.lr(30) == pytest.approx(1e-4)
    assert schedule.lr(149) == pytest.approx(1e-4 * (1 / 120) ** 0.9)
    assert [schedule.phase(e).decoder_only for e in (0, 14, 15, 149)] == [True, True, False, False]


def test_decoder_trains_with_the_full_rate_where_nothing_else_is_said():
    assert make("primus", "valley").schedule.lr(0) == SHORT.initial_lr
    assert make("primus", "frozen").schedule.lr(5) == pytest.approx(SHORT.initial_lr * 0.5**0.9)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"decoder_epochs": 2.5}, "decoder_epochs must be a whole number"),
        ({"decoder_epochs": True}, "decoder_epochs must be a whole number"),
        ({"decoder_lr": 0}, "decoder_lr must be a number > 0"),
        ({"layer_decay": 0}, "layer_decay must be a number above 0 and at most 1"),
        ({"layer_decay": 1.5}, "layer_decay must be a number above 0 and at most 1"),
    ],
)
def test_wrong_settings(block, message):
    with pytest.raises(SettingsError, match=message):
        read_config(FinetuneSettings, block, "here")


def test_phases_that_leave_nothing_are_refused():
    settings = FinetuneSettings(num_epochs=20, decoder_epochs=12, warmup_epochs=8)
    recipe = resolve(FINETUNING, "unet", settings)
    with pytest.raises(
        ValueError, match="12 epochs of the decoder alone and 8 of warm-up leave nothing of a run of 20"
    ):
        make_schedule("sawtooth", recipe, settings)
    assert make_schedule("warmup", recipe, settings).phases[-1].length == 12
    with pytest.raises(ValueError, match=r"'saw'\. Known schedules: poly, warmup"):
        make_schedule("saw", recipe, settings)


def test_settings_without_effect_are_told():
    settings = FinetuneSettings(num_epochs=100, decoder_epochs=5, layer_decay=0.5, seed=3)
    recipe = resolve(FINETUNING, "unet", settings)
    assert make_schedule("warmup", recipe, settings).ignored == ("decoder_epochs", "layer_decay")
    assert make_schedule("sawtooth", recipe, settings).ignored == ("layer_decay",)
    assert "without effect in this schedule: layer_decay" in str(make_schedule("sawtooth", recipe, settings))


@pytest.mark.parametrize("backbone", NETWORKS)
@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_resuming_from_every_epoch_changes_nothing(name, backbone):
    uninterrupted = make(backbone, name)
    saved: list[bytes] = []
    for epoch in range(10):
        train_epoch(uninterrupted, backbone, epoch)
        file = io.BytesIO()
        torch.save([uninterrupted.network.state_dict(), uninterrupted.optimizer.state_dict()], file)
        saved.append(file.getvalue())
    expected = uninterrupted.network.state_dict()
    for finished in range(1, 10):
        resumed = make(backbone, name)
        network_state, optimizer_state = torch.load(io.BytesIO(saved[finished - 1]), weights_only=True)
        resumed.resume(finished, optimizer_state["param_groups"])
        resumed.network.load_state_dict(network_state)
        resumed.optimizer.load_state_dict(optimizer_state)
        for epoch in range(finished, 10):
            train_epoch(resumed, backbone, epoch)
        got = resumed.network.state_dict()
        different = [key for key, value in expected.items() if not torch.equal(value, got[key])]
        assert different == [], f"resumed after {finished} epochs"


def changed(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    return {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("backbone", NETWORKS)
@pytest.mark.parametrize("name", ["valley", "sawtooth", "frozen"])
def test_decoder_alone_leaves_the_encoder_alone(name, backbone):
    phases = make(backbone, name)
    network = phases.network
    decoder = {n for n, _ in network.named_parameters() if n.startswith(("decoder.", "up_projection."))}
    encoder = {n for n, _ in network.named_parameters()} - decoder
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    for epoch in range(4):
        train_epoch(phases, backbone, epoch)
    used = {n for n in decoder if not ("seg_layers" in n and ".1." not in n)}  # without deep supervision: the last one
    assert used - changed(before, network) <= {n for n in decoder if n.endswith("bias")}  # some sit before a norm
    assert not changed(before, network) & encoder
    assert all(p.grad is None and not p.requires_grad for n, p in network.named_parameters() if n in encoder)
    assert len(phases.optimizer.state) <= len(decoder)
    assert {id(p) for g in phases.optimizer.param_groups for p in g["params"]} == {
        id(p) for n, p in network.named_parameters() if n in decoder
    }
    first = phases.optimizer
    train_epoch(phases, backbone, 4)
    if name == "frozen":
        assert phases.optimizer is first
        assert not changed(before, network) & encoder
    else:
        assert phases.optimizer is not first
        assert all(p.requires_grad for p in network.parameters())
        assert changed(before, network) & encoder


@pytest.mark.parametrize("backbone", NETWORKS)
def test_no_backward_is_paid_for_the_frozen_encoder(backbone):
    phases = make(backbone, "frozen")
    seen: list[bool] = []
    root = phases.network.encoder if backbone == "unet" else phases.network.eva
    root.register_forward_hook(
        lambda _m, _i, out: seen.extend(t.requires_grad for t in out if isinstance(t, Tensor)) or None
    )
    train_epoch(phases, backbone, 0)
    assert seen
    assert not any(seen)


def test_frozen_encoder_has_no_dropout_and_no_stochastic_depth():
    networks = ((unet(dropout=0.5), ("encoder",)), (primus(drop_path_rate=0.5), ("down_projection", "eva")))
    for (network, parts), inputs in zip(networks, INPUTS.values(), strict=True):
        recipe = resolve(FINETUNING, "unet", SHORT)
        phases = Phases(network, recipe, make_schedule("valley", recipe, SHORT))
        inside = {m for part in parts for m in network.get_submodule(part).modules()}
        x = torch.randn(inputs)

        def encoded(network: nn.Module = network, x: Tensor = x) -> Tensor:
            return network.encoder(x)[-1] if hasattr(network, "encoder") else network(x)

        network.train()
        phases.set_modes()
        assert {m for m in network.modules() if not m.training} == inside
        assert torch.equal(encoded(), encoded())
        phases.enter(4)
        network.train()
        phases.set_modes()
        assert all(m.training for m in network.modules())
        assert not torch.equal(encoded(), encoded())


@pytest.mark.parametrize("backbone", NETWORKS)
def test_what_is_fresh_in_the_encoder_trains_with_the_decoder(backbone):
    stem = {"unet": "encoder.stem.convs.0.conv.weight", "primus": "down_projection.proj.weight"}[backbone]
    phases = make(backbone, "sawtooth")
    assert not phases.network.get_parameter(stem).requires_grad
    assert phases.start_with([stem])
    assert not phases.start_with([stem])
    before = {n: p.detach().clone() for n, p in phases.network.named_parameters()}
    train_epoch(phases, backbone, 0)
    assert {n for n in changed(before, phases.network) if n in encoder_parameters(phases.network)} == {stem}
    owner = phases.network.get_submodule(stem.rpartition(".")[0])
    assert owner.training
    state = phases.optimizer.state_dict()
    resumed = make(backbone, "sawtooth")
    resumed.resume(1, state["param_groups"])
    assert resumed.fresh == (stem,)
    resumed.optimizer.load_state_dict(state)
    assert resumed.network.get_parameter(stem).requires_grad
    assert "1 tensors of the encoder" in resumed.phase_at(1)


def test_changed_phases_are_told_on_resume():
    state = make("unet", "sawtooth").optimizer.state_dict()
    other = make("unet", "warmup")
    with pytest.raises(RuntimeError, match=r"(?s)without --c.*Schedule warmup"):
        other.resume(2, state["param_groups"])


def test_layers_of_the_encoder():
    names = [name for name, _ in layers(unet())]
    assert names == ["decoder", "stage 2", "stage 1", "stage 0", "stem"]
    assert [name for name, _ in layers(unet(PlainConvUNet))] == names[:-1]
    assert [name for name, _ in layers(primus())] == ["decoder", "block 2", "block 1", "block 0", "stem"]
    for network in (unet(), unet(PlainConvUNet), primus()):
        found = [id(p) for _, parameters in layers(network) for p in parameters]
        assert sorted(found) == sorted(id(p) for p in network.parameters())
    transformer = primus()
    by_name = dict(layers(transformer))
    assert any(p is transformer.eva.pos_embed for p in by_name["stem"])
    assert any(p is transformer.eva.norm.weight for p in by_name["decoder"])


def test_layer_decay_slows_down_towards_the_image():
    settings = FinetuneSettings(num_epochs=10, warmup_epochs=2, initial_lr=1e-2, layer_decay=0.5)
    phases = make("primus", "layer_decay", settings)
    phases.step(2)
    assert [g["lr"] for g in phases.optimizer.param_groups] == pytest.approx([1e-2 * 0.5**i for i in range(5)])
    assert "0.0625 for stem" in phases.phase_at(2)


@pytest.fixture
def one_process(tmp_path):
    """A process group of one, so that DDP can be built."""
    from torch import distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ddp_averages_exactly_what_trains(one_process, monkeypatch):
    from torch.nn.parallel import DistributedDataParallel as DDP

    from nnunet_ssl.trainers.finetuning import SSLFinetuneTrainer

    phases = make("unet", "valley")
    trainer = object.__new__(SSLFinetuneTrainer)
    trainer.network, trainer.lr_scheduler, trainer.optimizer = DDP(phases.network), phases, phases.optimizer
    averaged: list[int] = []
    for epoch in (0, 3, 4, 5):
        wrapper = weakref.ref(trainer.network)
        trainer._use_phase(phases.enter(epoch))
        assert (wrapper() is None) == (epoch == 4)

        def count(_state, bucket):
            averaged.append(bucket.buffer().numel())
            done = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        if epoch in (0, 4):  # a new wrapper
            trainer.network.register_comm_hook(None, count)
        averaged.clear()
        trainer.optimizer.zero_grad()
        phases.network.decoder.deep_supervision = True  # all output layers are used, as in nnU-Net's training
        sum(o.square().mean() for o in trainer.network(torch.randn(INPUTS["unet"]))).backward()
        trainer.optimizer.step()
        trained = sum(p.numel() for p in phases.network.parameters() if p.requires_grad)
        assert sum(averaged) == trained == sum(p.numel() for g in phases.groups for p in g.parameters)


def test_page_names_every_trainer_and_every_setting():
    from nnunet_ssl.trainers import finetuning

    page = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text()
    named = set(re.findall(r"\bSSL\w+Trainer\b", page))
    assert named == {name for name in vars(finetuning) if re.fullmatch(r"SSL\w+Trainer", name)}
    used = {cls.schedule_name for name, cls in vars(finetuning).items() if name in named}
    assert used == set(SCHEDULE_NAMES)
    assert all(setting in page for settings in USED.values() for setting in settings)
