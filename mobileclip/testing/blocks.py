"""Conformance tests of blocks: checks that blocks learn, and can be saved, copied, folded and exported."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from mobileclip.reparam import foldable_modules, reparameterize
from mobileclip.testing.comparing import copies, exported, relative_error, with_random_statistics

# Maximum relative errors: _HALF in half precision, _NEAR for other batch sizes or compilers, _EXACT in float64.
_HALF = {torch.bfloat16: 0.03, torch.float16: 0.004}
_NEAR = 1e-5
# An activation may block the gradient of a parameter at random, but not for all random weights.
_DRAWS = 8
_EXACT = 1e-10


class _Spec(Protocol):
    def build(self) -> nn.Module: ...


def check_block(
    block: Callable[[], nn.Module] | _Spec,
    *inputs: Tensor,
    shape: Sequence[int] | None = None,
    folds: bool = True,
    export: bool = True,
) -> None:
    """Check a block's shape, dtype, gradients, state dict, copies, folding, export and half precision.

    The function checks that two builds with the same seed are equal; that the block returns one finite tensor of its
    input's dtype in training and evaluation mode; that in evaluation mode examples are independent and the block's
    state does not change; that gradients reach every parameter and the input; that state dict, deep copy and pickle
    restore the block; that folding, once or twice, gives equal outputs and does not change the original; and that the
    block and its folded form run in bfloat16, in float16 and through `torch.export`.

    Args:
        block: a class or function that returns a new block when called without arguments, or a spec with `build()`.
        inputs: inputs of the block, with at least three examples each; the function casts float32 inputs to other
            dtypes.
        shape: expected output shape; None skips the check.
        folds: whether folding must remove all batch norms; if False, batch norms may stay, or folding may raise
            `ValueError`.
        export: whether to test `torch.export`, which takes seconds.

    Raises:
        AssertionError: if a check fails; the message names the problem.

    Examples:
        >>> from mobileclip.blocks import RepMixer
        >>> check_block(lambda: RepMixer(8), torch.randn(3, 8, 7, 6), shape=(3, 8, 7, 6), export=False)
        >>> check_block(lambda: RepMixer(8), torch.randn(3, 8, 7, 6), shape=(3, 8, 9, 9))
        Traceback (most recent call last):
        AssertionError: RepMixer returned the shape (3, 8, 7, 6), expected (3, 8, 9, 9)
    """
    make = block if callable(block) else block.build
    with torch.random.fork_rng(devices=()):
        module = _seeded(make, 0)
        name = type(module).__name__
        _check_state(f"{name}, built again from the same seed,", _seeded(make, 0), module.state_dict())
        _check_training(name, make, inputs, shape)
        expected = _check_evaluation(name, with_random_statistics(module).eval(), inputs, shape)
        other = make().eval()
        _check_loading(name, other, module.state_dict())
        _check_near(f"{name} with the state dict of another build", other(*inputs), expected, 0)
        _check_form(name, module, inputs, expected, export=export)
        folded = _folded(name, module, inputs, folds=folds)
        if folded is not None:
            _check_form(f"folded {name}", folded, inputs, expected, export=export)


def _seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def _check_training(
    name: str, make: Callable[[], nn.Module], inputs: Sequence[Tensor], shape: Sequence[int] | None
) -> None:
    missing = set[str]()
    for seed in range(_DRAWS):
        block = with_random_statistics(_seeded(make, seed)).train()
        given = [one.clone().requires_grad_(one.is_floating_point()) for one in inputs]
        output = _output(name, block, given, shape)
        assert output.requires_grad, f"the output of {name} does not require a gradient"
        tensors = dict(block.named_parameters()) | {f"input {index}": one for index, one in enumerate(given)}
        wanted = {key: one for key, one in tensors.items() if one.requires_grad}
        value = (output * torch.randn_like(output)).sum()
        gradients = torch.autograd.grad(value, list(wanted.values()), allow_unused=True)
        lacking = {key for key, one in zip(wanted, gradients, strict=True) if not _reaches(one)}
        missing = missing & lacking if seed else lacking
        if not missing:
            return
    raise AssertionError(f"no finite gradient reaches {', '.join(sorted(missing))} of {name}")


def _reaches(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())


def _check_evaluation(name: str, block: nn.Module, inputs: Sequence[Tensor], shape: Sequence[int] | None) -> Tensor:
    before = copy.deepcopy(block.state_dict())
    output = _output(name, block, inputs, shape).detach()
    for index, expected in enumerate(output):
        (alone,) = block(*(one[index : index + 1] for one in inputs))
        _check_near(f"{name}, in evaluation mode on a single example,", alone, expected, _NEAR)
    _check_state(f"{name}, after evaluation,", block, before)
    return output


def _output(name: str, block: nn.Module, inputs: Sequence[Tensor], shape: Sequence[int] | None) -> Tensor:
    output = block(*inputs)
    assert isinstance(output, Tensor), f"{name} returned {type(output).__name__}, expected one tensor"
    wanted = tuple(output.shape if shape is None else shape)
    assert tuple(output.shape) == wanted, f"{name} returned the shape {tuple(output.shape)}, expected {wanted}"
    assert len(output) == len(inputs[0]), f"{name} returned {len(output)} rows for {len(inputs[0])} examples"
    assert output.dtype == torch.float32, f"{name} returned {output.dtype} for torch.float32"
    return output


def _check_loading(name: str, block: nn.Module, state: dict[str, Tensor]) -> None:
    try:
        block.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise AssertionError(f"{name} cannot load the state dict of another build: {error}") from error


def _check_form(form: str, block: nn.Module, inputs: tuple[Tensor, ...], expected: Tensor, *, export: bool) -> None:
    before = block(*inputs)
    for done, other in copies(block):
        _check_near(f"{done} {form}", other(*inputs), before, 0)
        shared = {id(one) for one in block.parameters()} & {id(one) for one in other.parameters()}
        assert not shared, f"{done} {form} shares parameters with the original"
    for dtype, bound in _HALF.items():
        found = copy.deepcopy(block).to(dtype)(*_cast(inputs, dtype))
        assert found.dtype == dtype, f"{form} returned {found.dtype} for {dtype}"
        _check_near(f"{form} in {dtype}", found, expected, bound)
    if export:
        turned = tuple(one.flip(0) for one in inputs)
        _check_near(f"{form} after torch.export", exported(form, block, inputs)(*turned), block(*turned), _NEAR)


def _folded(name: str, block: nn.Module, inputs: Sequence[Tensor], *, folds: bool) -> nn.Module | None:
    """Return the checked folded form; None if folding raises an allowed error."""
    before, exact, given = copy.deepcopy(block.state_dict()), copy.deepcopy(block).double(), _cast(inputs, torch.double)
    expected = exact(*given)
    try:
        folded, found = reparameterize(block), reparameterize(exact)
    except ValueError as error:
        if folds:
            raise AssertionError(f"{name} cannot be folded: {error}") from error
        return None
    _check_near(f"folded {name}", found(*given), expected, _EXACT)
    left = [type(module).__name__ for _, module in foldable_modules(found)]
    assert not (folds and left), f"folded {name} still contains foldable modules: {left}"
    _check_near(f"{name}, folded twice,", reparameterize(found)(*given), expected, _EXACT)
    _check_state(f"{name}, after folding a copy,", block, before)
    return folded


def _check_state(what: str, block: nn.Module, expected: dict[str, Tensor]) -> None:
    state = block.state_dict()
    other = [key for key in state.keys() | expected.keys() if key not in state or key not in expected]
    other += [key for key in state.keys() & expected.keys() if not torch.equal(state[key], expected[key])]
    assert not other, f"{what} has different tensors: {', '.join(sorted(other))}"


def _check_near(what: str, found: Tensor, expected: Tensor, bound: float) -> None:
    error = relative_error(found, expected)
    assert error <= bound, f"{what} returned different values: the relative error is {error:.1e}, the limit {bound:.0e}"


def _cast(inputs: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(one.to(dtype) if one.is_floating_point() else one for one in inputs)
