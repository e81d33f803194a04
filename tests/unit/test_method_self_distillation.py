"""Self-distillation: what student and teacher see, what counts, how the teacher follows, and that it learns."""

from __future__ import annotations

from math import log

import pytest
import torch

from nnunet_ssl.errors import SettingsError
from nnunet_ssl.losses.distillation_loss import centred_assignment, distillation
from nnunet_ssl.losses.reconstruction import masked_error
from nnunet_ssl.methods.self_distillation import SelfDistillation, SelfDistillationConfig
from nnunet_ssl.settings.blocks import read_config

METHOD = SelfDistillation
PATCH = (16, 32, 32)
MOVED, LEFT_OUT = torch.tensor(True), torch.tensor(False)


def copied(module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def changed(before, after) -> set[str]:
    return {k for k in before if not torch.equal(before[k], after[k])}


@pytest.mark.parametrize("kind", ["unet", "plain", "primus"])
def test_two_crops_of_every_image_with_hidden_tokens(kind, make, batch_of, prepared):
    method = make(kind, (24, 32) if kind == "plain" else PATCH)
    inputs = prepared(method, batch_of((24, 32) if kind == "plain" else PATCH, 1, 3))
    crop = method.backbone.patch_size
    assert inputs["image"].shape == (6, 1, *crop)
    grid = tuple(s // t for s, t in zip(crop, method.token, strict=True))
    corners = tuple(slice(None, None, t) for t in (1, *method.token))
    hidden = inputs["hidden"][:, 0][corners].flatten(1)
    assert hidden.shape[1] == torch.tensor(grid).prod()
    assert hidden.sum(dim=1).tolist() == [int(0.7 * hidden.shape[1])] * 6  # as many in every view
    assert inputs["hidden"].sum() == hidden.sum() * torch.tensor(method.token).prod(), "whole tokens"
    # Every compared token is hidden, none twice; where few are hidden, the others do not count.
    assert torch.equal(hidden.gather(1, inputs["places"]), inputs["token_usable"])
    assert all(len(set(row)) == len(row) for row in inputs["places"].tolist())
    assert inputs["token_usable"].sum(dim=1).tolist() == [min(inputs["places"].shape[1], int(hidden[0].sum()))] * 6


def test_as_many_tokens_in_every_step_whatever_is_hidden(make, batch_of, prepared):
    method = make("unet", PATCH, mask_ratio=(0.1, 0.9), compared_tokens=10)
    shapes = {prepared(method, batch_of(PATCH), seed)["places"].shape for seed in range(5)}
    assert shapes == {(6, 10)}


def test_excluded_tokens_and_views_do_not_count(make, batch_of, prepared):
    method = make("unet", PATCH, crop_size=PATCH)  # both views are the whole patch
    batch = batch_of(PATCH, 1, 3)
    batch["excluded"][0, ..., :16] = True  # half of the tokens: the view still counts
    batch["excluded"][1] = True
    inputs = prepared(method, batch)
    counted = inputs["token_usable"].view(2, 3, -1)
    assert not counted[:, 1].any()
    assert inputs["image_usable"].tolist() == [False, False, True] * 2  # not less than half is excluded
    columns = inputs["places"].view(2, 3, -1) % method.grid[-1]
    first = columns[:, 0][counted[:, 0]]
    assert len(first)
    assert first.min() >= method.grid[-1] // 2

    encoded = method.encode(inputs)
    for value in (0.0, 9.0):  # what does not count is nothing to the others either, in the norms over the batch
        token = torch.where(inputs["token_usable"].unsqueeze(2), encoded["token"], value)
        found = method.compare({**encoded, "token": token}, inputs).terms
        torch.testing.assert_close(
            found["token_distillation"], method.compare(encoded, inputs).terms["token_distillation"]
        )


@pytest.mark.parametrize("kind", ["unet", "primus"])
def test_the_teacher_sees_what_is_hidden_and_the_student_does_not(kind, make, batch_of, prepared):
    method = make(kind, PATCH).eval()
    inputs = prepared(method, batch_of(PATCH))
    other = {**inputs, "image": torch.where(inputs["hidden"], torch.randn_like(inputs["image"]), inputs["image"])}
    first, second = method.encode(inputs), method.encode(other)
    for name in ("token", "image", "reconstructed"):
        torch.testing.assert_close(first[name], second[name])
    for name in ("teacher_token", "teacher_image"):
        assert (first[name] - second[name]).abs().max() > 1e-3
        assert not first[name].requires_grad


@pytest.mark.parametrize("kind", ["unet", "primus"])
def test_loss_is_painting_and_both_distillations(kind, make, batch_of, prepared):
    weights = {"reconstruction_weight": 2.0, "token_weight": 0.3, "image_weight": 0.7}
    method = make(kind, PATCH, **weights).eval()
    inputs = prepared(method, batch_of(PATCH))
    for centre in method.centre.values():
        centre.value.uniform_(-0.1, 0.1)
    encoded = method.encode(inputs)
    output = method.compare(encoded, inputs)
    reconstructed = masked_error(encoded["reconstructed"], inputs["image"], inputs["hidden"], "l1")
    expected = 2.0 * reconstructed
    for name, weight in (("token", 0.3), ("image", 0.7)):
        counts = inputs[f"{name}_usable"].flatten()
        seen = encoded[f"teacher_{name}"]
        if name == "image":  # the teacher of the second views for the first ones, and the other way round
            seen = torch.cat([seen[3:], seen[:3]])
        _, wanted = method.teacher_head[name](seen.reshape(-1, seen.shape[-1]), counts)
        _, scores = method.head[name](encoded[name].reshape(-1, seen.shape[-1]), counts)
        assignment = centred_assignment(wanted, method.centre[name].value, 0.07)
        expected = expected + weight * distillation(assignment, scores, 0.1, counts.float(), counts.sum())
    torch.testing.assert_close(output.loss, expected)


def test_terms_of_weight_zero_have_no_heads(make, batch_of, prepared):
    for name, other in (("token", "image"), ("image", "token")):
        method = make("unet", PATCH, **{f"{name}_weight": 0.0})
        assert list(method.head) == [other]
        assert not any(f".{name}." in key for key in method.heads())
        output = method(prepared(method, batch_of(PATCH)))
        assert f"{name}_distillation" not in output.terms
        assert {"spread", "effective_rank"} <= set(output.terms)


@pytest.mark.parametrize("centring", ["mean", "sinkhorn"])
@pytest.mark.parametrize("kind", ["unet", "primus"])
def test_only_the_student_gets_gradients_and_only_a_step_moves_the_teacher(kind, centring, make, batch_of, prepared):
    method = make(kind, PATCH, centring=centring, momentum=0.5).train()
    assert not method.teacher.training
    before, inputs = copied(method), prepared(method, batch_of(PATCH))
    output = method(inputs)
    output.loss.backward()
    assert changed(before, copied(method)) == set(), "a forward pass may be done again"
    with_gradient = {n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert not any(name.startswith("teacher") for name in with_gradient)
    assert {"head.token.prototypes", "head.image.prototypes", "mask_token"} <= with_gradient
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    stepped = copied(method)
    method.after_step(output.statistics, LEFT_OUT)
    assert changed(stepped, copied(method)) == set()
    method.after_step(output.statistics, MOVED)
    moved = copied(method)
    for key in changed(before, stepped):
        twin = key.replace("backbone.", "teacher.", 1).replace("head.", "teacher_head.", 1)
        if twin != key:
            torch.testing.assert_close(moved[twin], (before[twin] + stepped[key]) / 2, msg=twin)
    assert {k.split(".")[0] for k in changed(stepped, moved)} == {"teacher", "teacher_head", "centre"}
    for name in method.centre:
        counts = inputs[f"{name}_usable"].flatten()
        torch.testing.assert_close(moved[f"centre.{name}.value"], output.statistics[name] / counts.sum())


def test_temperature_rises_with_the_training_and_has_its_last_value_in_evaluation(make, batch_of, prepared):
    method = make("unet", PATCH).train()
    found = []
    for progress in (0.0, 0.15, 0.3, 0.9):
        method.progress = progress
        found.append(prepared(method, batch_of(PATCH))["temperature"].item())
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])
    method.progress = 0.0
    assert prepared(method.eval(), batch_of(PATCH))["temperature"].item() == pytest.approx(0.07)


def test_yardstick_is_what_equal_prototypes_and_the_mean_cost(make, batch_of, prepared):
    method = make("unet", PATCH, loss="l2").eval()
    inputs = prepared(method, batch_of(PATCH))
    with torch.no_grad():
        for head in method.head.values():
            head.prototypes.copy_(head.prototypes[:1].expand_as(head.prototypes))
    encoded = method.encode(inputs)
    counted = inputs["image"][inputs["hidden"]]
    encoded["reconstructed"] = counted.mean().expand_as(inputs["image"])
    loss = method.compare(encoded, inputs).loss
    assert method.yardstick(inputs).item() == pytest.approx(loss.item(), rel=1e-4)
    assert method.yardstick(inputs).item() == pytest.approx(counted.var(correction=0).item() + 0.2 * log(48), rel=1e-4)


def test_heads_and_centres_go_through_a_checkpoint_without_the_networks(make):
    method, other = make("unet", PATCH), make("unet", PATCH)
    for centre in method.centre.values():
        centre.value.uniform_()
    heads = method.heads()
    assert {k.split(".")[0] for k in heads} == {"mask_token", "head", "teacher_head", "centre"}
    other.load_heads(heads)
    assert changed(heads, other.heads()) == set()
    assert [type(n) for n in method.networks] == [type(method.bare_network)] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reconstruction_weight": 0.0}, "reconstruction_weight must be a number > 0"),
        ({"token_weight": 0.0, "image_weight": 0.0}, "use the method simmim"),
        ({"momentum": 1.1}, "momentum must be a number from 0 to"),
        ({"centring": "batch"}, "centring.*mean.*sinkhorn"),
    ],
)
def test_mistakes(wrong, message):
    with pytest.raises(SettingsError, match=message):
        read_config(SelfDistillationConfig, wrong, "ssl")


def test_blocks_that_cut_tokens_are_refused(make):
    with pytest.raises(ValueError, match="not a multiple of a token"):
        make("primus", PATCH, mask_block=12)
