"""torch.compile takes every pretext task as one graph, once; and where it fails, training goes on without it."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from nnunet_ssl.backbones.drop_path import ImageDropPath, drop_by_image, use_keys
from nnunet_ssl.backbones.recompute import recompute
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.trainers.device.compiling import Compiler
from nnunet_ssl.views.rng import ImageGenerator

PATCH = (16, 24, 32)
OWN = [get_method(m) for m in method_names() if get_method(m).__module__.startswith("nnunet_ssl.")]
QUICK = (("mae", "primus"), ("spark3d", "unet"))  # the others are marked slow: tracing takes a few seconds each
PAIRS = [
    pytest.param(cls.name, kind, marks=() if (cls.name, kind) in QUICK else pytest.mark.slow)
    for cls in OWN
    for kind in cls.backbones
]
IMAGES = 2

pytestmark = pytest.mark.filterwarnings("ignore:.*is too small")


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def method_class(request):
    """The method that the test's parameters name."""
    return get_method(request.getfixturevalue("name") if "name" in request.fixturenames else "mae")


@pytest.fixture
def inputs_of(batch_of):
    """Function (method, step) -> inputs of a training step, whose keys the method's stochastic depth is told."""

    def prepare(method, step):
        generator = ImageGenerator("cpu", 100 + step, range(IMAGES))
        with torch.no_grad():
            inputs = method.prepare(batch_of(PATCH, 1, IMAGES), generator)
        return {**inputs, **method.counts(inputs), "image_keys": generator.keys}

    return prepare


def tell(method, inputs):
    use_keys([m for m in method.modules() if isinstance(m, ImageDropPath)], inputs["image_keys"])


def gradients(method):
    return {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


def ready(make, kind):
    method = make(kind, PATCH).train()
    if kind == "primus":  # the tiny network of the other tests drops nothing
        from timm.layers import DropPath

        for block in method.backbone.network.eva.blocks:
            block.drop_path1, block.drop_path2 = DropPath(0.4), DropPath(0.4)
    drop_by_image(method)
    return method


def assert_same_training(method, twin, compiled, inputs_of, steps=3):
    """Losses and gradients of a method and of its compiled twin, over steps that all differ."""
    for step in range(steps):
        inputs = inputs_of(method, step)
        for module in (method, twin):
            module.zero_grad()
            tell(module, inputs)
        expected, found = method(inputs), compiled(inputs)
        expected.loss.backward()
        found.loss.backward()
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)
        assert set(found.terms) == set(expected.terms)
        assert set(found.preview) == set(expected.preview)
        own, others = gradients(method), gradients(twin)
        assert set(own) == set(others)
        scale = max(g.abs().max() for g in own.values()).item()
        for key, gradient in own.items():
            torch.testing.assert_close(others[key], gradient, rtol=1e-4, atol=1e-5 * scale, msg=f"{step}: {key}")


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_one_graph_that_is_compiled_once(name, kind, make, inputs_of):
    """Keys, masks and images change with every step; none of them may be part of the code."""
    method = ready(make, kind)
    twin = copy.deepcopy(method)
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    assert_same_training(method, twin, compiled, inputs_of)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), QUICK)
def test_recomputing_blocks_are_part_of_the_graph(name, kind, make, inputs_of):
    method = ready(make, kind)
    twin = copy.deepcopy(method)
    recompute(twin, twin.recomputing)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    assert_same_training(method, twin, compiled, inputs_of, steps=2)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simclr"])
def test_training_in_parts_and_validation_compile_once_each(name, make, inputs_of):
    """`encode` runs without gradients, with them, and in evaluation: three graphs, however often they take turns."""
    method = ready(make, "primus")
    encode = torch.compile(method.encode, backend="eager", fullgraph=True)
    for step in range(3):
        inputs = inputs_of(method.train(), step)
        tell(method, inputs)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            first = encode(inputs)["features"]
        with torch.autocast("cpu", torch.bfloat16):
            again = encode(inputs)["features"]
        torch.testing.assert_close(again, first)
        again.square().sum().backward()
        method.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            encode(inputs)
    assert counters["stats"]["unique_graphs"] == 3


class Small(nn.Module):
    """One convolution, whose hook counts the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x).square().sum()

    def encode(self, x):
        return self.layer(x)


def broken(_graph, _inputs):
    """A backend that cannot compile: what inductor raises without a C compiler, over several lines."""
    try:
        raise FileNotFoundError("g++: no such file\nand a page of advice")
    except FileNotFoundError as error:
        raise RuntimeError("the compiler failed") from error


def test_failure_is_one_line_and_training_goes_on(caplog, capfd):
    plain, said = Small(), []
    module = copy.deepcopy(plain)
    compiler = Compiler(True, said.append, backend=broken)
    encode = compiler(module.encode)
    compiler.compile_forward(module)
    x = torch.randn(2, 3)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            module(x).backward()
            plain(x).backward()
        assert torch.equal(encode(x), plain.encode(x))
    assert torch.equal(module.layer.weight.grad, plain.layer.weight.grad)
    (line,) = said
    assert "\n" not in line
    assert "FileNotFoundError: g++: no such file)" in line
    assert "export nnUNet_compile=0" in line
    assert not compiler.on
    assert not caplog.records
    assert "".join(capfd.readouterr()) == ""
    assert list(module.state_dict()) == list(plain.state_dict())


def test_failure_of_the_backward_pass_is_found_in_the_forward_pass():
    """No process may start to wait for gradients that another one cannot compute."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    if not hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"):
        pytest.skip("this torch always compiles the backward pass when it is first needed")

    def forward_only(graph, _inputs):
        return make_boxed_func(graph.forward)

    said: list[str] = []
    module = Small()
    backend = aot_autograd(fw_compiler=forward_only, bw_compiler=broken)
    compiler = Compiler(True, said.append, backend=backend)
    compiler.compile_forward(module)
    loss = module(torch.randn(2, 3))
    assert len(said) == 1
    loss.backward()
    assert module.layer.weight.grad.isfinite().all()


def test_errors_of_the_network_itself_are_not_taken_for_the_compilers():
    said: list[str] = []
    module = Small()
    Compiler(True, said.append, backend="eager").compile_forward(module)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        module(torch.randn(2, 4))


def test_switched_off_for_a_while():
    compiled_graphs = []

    def backend(graph, _inputs):
        compiled_graphs.append(graph)
        return graph.forward

    module = Small()
    compiler = Compiler(True, pytest.fail, backend=backend)
    compiler.compile_forward(module)
    with compiler.switched_off():
        module(torch.randn(2, 3))
    assert not compiled_graphs
    module(torch.randn(2, 3))
    assert len(compiled_graphs) == 1


def lying(factor):
    """A back end whose gradients are those of the graph times `factor`, without an error."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def backward(graph, _inputs):
        def run(*given):
            return [None if g is None else g * factor for g in graph.forward(*given)]

        return make_boxed_func(run)

    def forward(graph, _inputs):
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=forward, bw_compiler=backward)


@pytest.mark.parametrize("factor", [0.0, -1.0, 1.01])
def test_gradients_that_are_wrong_without_an_error_are_found_in_the_first_step(factor):
    said: list[str] = []
    plain = Small()
    module = copy.deepcopy(plain)
    compiler = Compiler(True, said.append, backend=lying(factor))
    compiler.compile_forward(module)
    x = torch.randn(2, 3)

    def step():
        module.zero_grad(set_to_none=True)
        loss = module(x)
        loss.backward()
        return loss

    assert compiler.first()
    compiler.attempt(True, step, step)
    assert not compiler.first()
    found = module.layer.weight.grad.clone()
    other = compiler.compare(module.parameters(), step)
    plain(x).backward()
    expected = plain.layer.weight.grad
    torch.testing.assert_close(found, factor * expected)
    warnings = [line for line in said if line.startswith("WARNING")]
    if factor > 1:  # what rounding may do: the compiled gradients stay
        assert other is None
        assert compiler.on
        assert not warnings
        assert torch.equal(module.layer.weight.grad, found)
    else:
        assert other is not None
        assert not compiler.on
        assert len(warnings) == 1
        assert "gradients differ by" in warnings[0]
        assert torch.equal(module.layer.weight.grad, expected)


def test_a_comparison_that_finds_no_memory_is_left_out():
    said: list[str] = []
    module = Small()
    compiler = Compiler(True, said.append, backend="eager")
    compiler.compile_forward(module)
    module(torch.randn(2, 3)).backward()
    before = module.layer.weight.grad.clone()

    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    assert compiler.compare(module.parameters(), too_large) is None
    assert compiler.on
    assert torch.equal(module.layer.weight.grad, before)
    assert len(said) == 1
