"""Batch norms added up in one pass: equal to one after the other, in values, gradients and running statistics."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mobileclip.blocks import ConvNorm, ConvStem, Downsample, LargeKernelConv, MobileOneBlock, RepMixer, recomputed
from mobileclip.training.cpu import NormBranch, can_fuse_norms, fuse_for_cpu, sum_of_norms
from tests.blocks.filling import filled, noise
from tests.errors import fails
from tests.training.runs import kept_by

BLOCKS = {
    "dense": lambda: MobileOneBlock(6),
    "dense_1x1": lambda: MobileOneBlock(6, kernel_size=1),
    "dense_strided": lambda: MobileOneBlock(6, out_dim=8, stride=2),
    "depthwise": lambda: MobileOneBlock(6, groups=6, num_branches=3, activation=None),
    "depthwise_strided": lambda: MobileOneBlock(6, groups=6, stride=2),
    "depthwise_strided_branches": lambda: MobileOneBlock(6, groups=6, stride=2, num_branches=2),
    "depthwise_wider": lambda: MobileOneBlock(6, out_dim=12, groups=6, squeeze_excite=True),
    "skip_alone": lambda: MobileOneBlock(6, num_branches=0, scale_branch=False),
    "scale_alone": lambda: MobileOneBlock(6, groups=6, num_branches=0, skip=False),
    "large_kernel": lambda: LargeKernelConv(6, out_dim=12, stride=2, squeeze_excite=True),
    "repmixer": lambda: RepMixer(6),
    "repmixer_row": lambda: RepMixer(6, kernel_size=(1, 5)),
    "stem": lambda: nn.Sequential(nn.Conv2d(6, 3, 1), ConvStem(8)),
    "downsample": lambda: Downsample(6, out_dim=12),
}
EXACT = {"rtol": 1e-12, "atol": 1e-12}
# Where what is asked of a class is asked of each of its forms again.
EACH_CLASS, SLOW = {"depthwise", "large_kernel", "repmixer"}, pytest.mark.slow


def trained(block, x):
    """Return all that two steps of training change: outputs, gradients of input and parameters, buffers."""
    own = x.clone().requires_grad_()
    for step in range(2):
        y = block(own)
        (y * noise(*y.shape, seed=step + 1).to(y)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    return {"output": y.detach(), "input": own.grad, **gradients, **dict(block.named_buffers())}


def assert_alike(other, x, **tolerances):
    """Assert that a block in float64 trains alike when it is fused; return the fused one."""
    block = fuse_for_cpu(copy.deepcopy(other))
    torch.testing.assert_close(trained(block, x), trained(other, x), **(EXACT | tolerances))
    return block


def norms_of(block):
    return [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]


def num_alone(y):
    """Return how many norms were computed each by itself on the way to an output, as PyTorch's graph has it."""
    seen, waiting = set(), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(before for before, _ in node.next_functions)
    return sum(node.name() == "NativeBatchNormBackward0" for node in seen)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_in_float64_it_is_the_branches_one_by_one(name, layout):
    other = filled(BLOCKS[name]()).double().train()
    block = fuse_for_cpu(copy.deepcopy(other))
    x = (2 * noise(4, 6, 7, 10, dtype=torch.float64) + 3).contiguous(memory_format=layout)
    assert num_alone(copy.deepcopy(block)(x)) < num_alone(copy.deepcopy(other)(x)) == len(norms_of(other))
    assert_alike(other, x)


@pytest.mark.parametrize("name", BLOCKS)
def test_in_float32_it_is_no_further_from_the_truth_than_the_branches(name):
    other, x = filled(BLOCKS[name]()).train(), 2 * noise(4, 6, 7, 10) + 3
    result = trained(fuse_for_cpu(copy.deepcopy(other)), x)
    truth, expected = trained(copy.deepcopy(other).double(), x.double()), trained(other, x)
    for key in result:
        scale = truth[key].double().norm() + 1e-3
        error, usual = ((values[key].double() - truth[key]).norm() / scale for values in (result, expected))
        assert error < 5 * usual + 2e-6, key


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0, None])
def test_running_statistics_at_any_momentum(momentum):
    other = filled(RepMixer(6)).double().train()
    for norm in norms_of(other):
        norm.momentum = momentum
    before = {name: buffer.clone() for name, buffer in other.named_buffers()}
    block = assert_alike(other, noise(4, 6, 5, 5, dtype=torch.float64))
    moved = [name for name, buffer in block.named_buffers() if not torch.equal(buffer, before[name])]
    assert len(moved) == (4 if momentum == 0.0 else 12)  # num_batches_tracked at least


def test_norms_without_running_statistics_and_with_an_eps_of_their_own():
    other = filled(RepMixer(6)).double().train()
    other.mixer.skip = nn.BatchNorm2d(6, track_running_stats=False).double()
    for norm, eps in zip(norms_of(other), (1e-5, 0.1, 1.0, 3.0), strict=True):
        norm.eps = eps
    assert_alike(other, noise(4, 6, 5, 5, dtype=torch.float64))


@pytest.mark.parametrize("held", [True, False], ids=["held", "plain"])
def test_computed_again_in_the_backward_pass(held):
    def again(block, x):
        return recomputed(block, block, x) if held else checkpoint(block, x, use_reentrant=False)

    x, results = noise(4, 6, 5, 5, dtype=torch.float64), []
    for call in (lambda block, x: block(x), again):
        block, own = fuse_for_cpu(filled(RepMixer(6))).double().train(), x.clone().requires_grad_()
        call(block, own).square().sum().backward()
        results.append([own.grad, *(parameter.grad for parameter in block.parameters())])
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", ["mixer.skip", "mixer.scale.norm", "norm.skip"])
def test_a_frozen_norm_keeps_its_statistics_and_the_others_go_on(frozen):
    block, x = fuse_for_cpu(filled(RepMixer(6))).train(), noise(4, 6, 5, 5)
    norm = block.get_submodule(frozen).eval()
    before = norm.running_mean.clone()
    y = block(x)
    assert num_alone(y) > 0, "not all four are one sum"
    assert torch.equal(norm.running_mean, before)
    torch.testing.assert_close(y, x + block.layer_scale(block.mixer(x) - block.norm(x)))


def test_synchronised_norms_and_half_precision_are_left_to_the_norms():
    block, x = fuse_for_cpu(RepMixer(6).train()), noise(4, 6, 5, 5)
    assert (len(norms_of(block)), num_alone(block(x))) == (4, 0)
    for dtype in (torch.bfloat16, torch.float16):
        assert num_alone(copy.deepcopy(block).to(dtype)(x.to(dtype))) == 4
    block = nn.SyncBatchNorm.convert_sync_batchnorm(block)
    assert type(block.norm.skip) is nn.SyncBatchNorm
    assert num_alone(block(x)) == 4


def test_one_value_per_channel_is_refused_as_a_norm_refuses_it():
    for block, side in ((RepMixer(6), 1), (MobileOneBlock(6, groups=6, stride=2), 2)):
        with fails(ValueError):
            fuse_for_cpu(block).train()(noise(1, 6, side, side))


@pytest.mark.parametrize("name", BLOCKS)
def test_wrapped_convolutions_are_called(name):
    """As adapters wrap them: what stands in for a convolution computes, not its weight."""
    other = filled(BLOCKS[name]()).double().train()
    for module in [module for module in other.modules() if isinstance(module, ConvNorm)]:
        module.conv = nn.Sequential(module.conv, nn.Tanh())
    assert_alike(other, noise(4, 6, 7, 10, dtype=torch.float64), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", BLOCKS)
def test_autocast_gives_the_type_and_nearly_the_values_of_the_branches(name):
    other, x = filled(BLOCKS[name]()).train(), noise(8, 6, 9, 10)
    block = fuse_for_cpu(copy.deepcopy(other))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = block(x), other(x)
    assert y.dtype == expected.dtype
    assert (y - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("name", [name if name in EACH_CLASS else pytest.param(name, marks=SLOW) for name in BLOCKS])
def test_compiled_it_is_left_to_the_compiler(name):
    block, x = fuse_for_cpu(filled(BLOCKS[name]())).train(), noise(4, 6, 5, 5)
    expected = block(x)
    assert num_alone(expected) < len(norms_of(block))
    torch.compiler.reset()  # it compiles a class for a few forms of it and no more
    y = torch.compile(block, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert num_alone(y) == len(norms_of(block))


def test_inputs_that_need_no_gradient_get_none():
    other, x = filled(MobileOneBlock(6)).double().train(), noise(4, 6, 5, 5, dtype=torch.float64)
    results = []
    for block in (fuse_for_cpu(copy.deepcopy(other)), other):
        block(x).pow(3).sum().backward()
        results.append([parameter.grad for parameter in block.parameters()])
    torch.testing.assert_close(*results, **EXACT)
    assert x.grad is None


def test_it_keeps_two_feature_maps_where_the_branches_keep_five():
    block, x = RepMixer(6).train(), noise(4, 6, 16, 16).requires_grad_()
    kept, usual = (kept_by(lambda one=one: one(x)) for one in (fuse_for_cpu(copy.deepcopy(block)), block))
    assert sum(tensor.shape == x.shape for tensor in kept) == 2
    assert sum(tensor.shape == x.shape for tensor in usual) >= 4


def test_inputs_shared_and_not():
    """Any sum of norms, not only those of the blocks: two inputs, scales, signs, a residual that is the second."""
    norms = [filled(nn.BatchNorm2d(5), seed=seed).double().train() for seed in range(4)]
    first, second = (noise(3, 5, 4, 4, seed=seed, dtype=torch.float64).requires_grad_() for seed in (5, 6))
    scale, factor = (noise(5, 1, 1, seed=seed, dtype=torch.float64).requires_grad_() for seed in (7, 8))
    choices = [{"scale": scale}, {"sign": -1}, {}, {"scale": scale.square()}]
    inputs = (first, second, first, second)
    branches = [NormBranch(x, norm, **own) for x, norm, own in zip(inputs, norms, choices, strict=True)]
    y = sum_of_norms(branches, residual=second, factor=factor)
    total = sum(b.sign * b.norm(b.x if b.scale is None else b.scale * b.x) for b in branches)
    expected = second + factor * total
    torch.testing.assert_close(y, expected, **EXACT)
    leaves = [first, second, scale, factor, *(p for norm in norms for p in norm.parameters())]
    grads = [torch.autograd.grad(value.pow(3).sum(), leaves, retain_graph=True) for value in (y, expected)]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)
    assert can_fuse_norms(norms, first)
