"""Conformance tests of losses: checks keywords, terms, gradients, order of pairs, precision and process groups."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import ProcessRaisedException, start_processes

from mobileclip.losses import LossSpec, LossTerms
from mobileclip.testing.comparing import copies, first_line, relative_error
from mobileclip.testing.specs import check_spec

_PAIRS, _DIM, _SCALE = 6, 8, 9.0
_EXACT, _ROUGH = 1e-10, 0.05
_PATIENCE = dt.timedelta(minutes=2)
_Inputs = dict[str, Tensor]


def check_loss(spec: LossSpec, *, teacher_dims: int = 0, synthetic: bool = True, processes: int = 1) -> None:
    """Check a loss's keywords, terms, gradients, copies and half precision, and its results over several processes.

    The function checks the spec (`check_spec`); that the loss accepts embeddings by keyword and returns finite
    `LossTerms`, whose total is the sum of the two terms; that terms without a name are zero; that gradients reach the
    embeddings, the logit scale and every parameter, and are proportional to the total; that the texts' gradients stay
    equal if only the texts require gradients; that the order of pairs does not matter; that a copy has its own
    parameters; that in bfloat16 and float16 at a logit scale of 100, gradients are finite and values are close to
    float64; and that value and gradients are equal for a batch in one process and a batch shared by several processes.

    Args:
        spec: spec of the loss; the class must be registered.
        teacher_dims: total width of the teachers' embeddings; 0 for a loss without teachers.
        synthetic: whether the loss also accepts synthetic captions.
        processes: number of processes that share a batch; 1 for single-process losses.

    Raises:
        AssertionError: if a check fails; the message names the problem.

    Examples:
        >>> from mobileclip.losses import ContrastiveLossSpec, ReinforcedLossSpec
        >>> check_loss(ContrastiveLossSpec())
        >>> check_loss(ReinforcedLossSpec(teacher_dims=(5, 3)), teacher_dims=8)
        >>> check_loss(0.5)
        Traceback (most recent call last):
        AssertionError: float is not an attrs class; decorate the class with @attrs.frozen(kw_only=True)
    """
    check_spec(spec, family=LossSpec)
    for with_synthetic in (False, True) if synthetic else (False,):
        inputs = _batch(spec, _PAIRS, teacher_dims, synthetic=with_synthetic)
        loss = spec.build().double()
        total = _check_terms(spec, loss, inputs).total
        _check_gradients(spec, loss, inputs, total)
        _check_order(spec, loss, inputs)
        for done, other in copies(loss):
            assert _terms(spec, other, inputs).total == total, f"{done} {_named(spec)} returned a different value"
            shared = {id(one) for one in loss.parameters()} & {id(one) for one in other.parameters()}
            assert not shared, f"{done} {_named(spec)} shares parameters with the original"
        for dtype in (torch.bfloat16, torch.float16):
            _check_half(spec, inputs, dtype)
    if processes > 1:
        _check_processes(spec, _batch(spec, 3 * processes, teacher_dims, synthetic=synthetic), processes)


def _batch(spec: LossSpec, pairs: int, teacher_dims: int, *, synthetic: bool) -> _Inputs:
    generator = torch.Generator().manual_seed(0)

    def unit(width: int) -> Tensor:
        return F.normalize(torch.randn(pairs, width, generator=generator, dtype=torch.float64), dim=1)

    names = ("image", "text", "syn_text") if synthetic else ("image", "text")
    inputs = {name: unit(_DIM).requires_grad_() for name in names}
    teachers = {f"teacher_{name}": unit(teacher_dims) for name in names if spec.needs_teachers}
    return inputs | teachers | {"logit_scale": torch.tensor(_SCALE, dtype=torch.float64, requires_grad=True)}


def _terms(spec: LossSpec, loss: nn.Module, inputs: Mapping[str, Tensor]) -> LossTerms:
    try:
        terms = loss(**inputs)
    except Exception as error:
        raise AssertionError(f"{_named(spec)} cannot process a batch: {first_line(error)}") from error
    assert isinstance(terms, LossTerms), f"{_named(spec)} returned {type(terms).__name__}, expected LossTerms"
    return terms


def _check_terms(spec: LossSpec, loss: nn.Module, inputs: _Inputs) -> LossTerms:
    terms = _terms(spec, loss, inputs)
    for name, value in terms._asdict().items():
        assert not value.ndim, f"{name} of {_named(spec)} has the shape {tuple(value.shape)}, expected a scalar"
        assert value.isfinite(), f"{name} of {_named(spec)} is {value.item()}, expected a finite value"
    for name, shown in zip(("contrastive", "distillation"), spec.term_names, strict=True):
        value = getattr(terms, name).item()
        assert shown or value == 0, f"{name} of {_named(spec)} is {value}, but has no name in `term_names`"
    gap = (terms.contrastive + terms.distillation - terms.total).abs() / terms.total.abs().clamp_min(1e-12)
    assert gap < _EXACT, f"the terms of {_named(spec)} do not add up to the total: {terms}"
    with torch.no_grad():
        other = _terms(spec, loss, inputs).total
    assert other == terms.total, f"{_named(spec)} is {other.item()} under torch.no_grad(), expected {terms.total}"
    return terms


def _gradients(loss: nn.Module, inputs: _Inputs, total: Tensor) -> _Inputs:
    wanted = {name: one for name, one in inputs.items() if one.requires_grad} | dict(loss.named_parameters())
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True, retain_graph=True)
    return {name: one for name, one in zip(wanted, found, strict=True) if one is not None and one.isfinite().all()}


def _check_gradients(spec: LossSpec, loss: nn.Module, inputs: _Inputs, total: Tensor) -> None:
    assert total.requires_grad, f"the total of {_named(spec)} does not require a gradient"
    found = _gradients(loss, inputs, total)
    wanted = {name for name, one in inputs.items() if one.requires_grad} | dict(loss.named_parameters()).keys()
    missing = [
        *(wanted - found.keys()),
        *(name for name in ("image", "text") if name in found and not found[name].any()),
    ]
    assert not missing, f"no finite gradient of {_named(spec)} reaches {', '.join(sorted(missing))}"
    doubled = {name: 2 * one for name, one in found.items()}
    _check_near(f"gradients of {_named(spec)} for twice the total", _gradients(loss, inputs, 2 * total), doubled)
    alone = {name: one if name == "text" else one.detach() for name, one in inputs.items()}
    only = _gradients(loss, alone, _terms(spec, loss, alone).total)
    _check_near(
        f"gradients of {_named(spec)} if only texts require gradients", {"text": only["text"]}, {"text": found["text"]}
    )


def _check_order(spec: LossSpec, loss: nn.Module, inputs: _Inputs) -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    turned = {
        name: one[order].detach().requires_grad_(one.requires_grad) if one.ndim else one for name, one in inputs.items()
    }
    results = []
    for given in (inputs, turned):
        total = _terms(spec, loss, given).total
        results.append({"total": total} | _gradients(loss, given, total))
    expected = {name: one[order] if name in inputs and one.ndim else one for name, one in results[0].items()}
    _check_near(f"{_named(spec)} for the pairs in a different order", results[1], expected)


def _check_half(spec: LossSpec, inputs: _Inputs, dtype: torch.dtype) -> None:
    given = {name: one.detach().to(dtype).requires_grad_(one.requires_grad) for name, one in inputs.items()}
    given["logit_scale"] = torch.tensor(100.0, dtype=dtype, requires_grad=True)
    exact = {name: one.detach().double() for name, one in given.items()}
    loss = spec.build()
    total = _terms(spec, loss, given).total
    expected = _terms(spec, spec.build().double(), exact).total
    assert relative_error(total, expected) < _ROUGH, (
        f"{_named(spec)} is {total.item()} in {dtype}, expected {expected.item()}"
    )
    missing = (
        given.keys() - _gradients(loss, given, total).keys() - {one for one in given if not given[one].requires_grad}
    )
    assert not missing, f"no finite gradient of {_named(spec)} reaches {', '.join(sorted(missing))} in {dtype}"


def _check_processes(spec: LossSpec, inputs: _Inputs, processes: int) -> None:
    loss = spec.build().double()
    total = _terms(spec, loss, inputs).total
    expected = {"total": total.detach()} | _gradients(loss, inputs, total)
    with tempfile.TemporaryDirectory() as folder:
        plain = {name: one.detach() for name, one in inputs.items()}
        try:
            start_processes(_share, args=(folder, processes, spec, plain), nprocs=processes)  # type: ignore[no-untyped-call]
        except ProcessRaisedException as error:
            last = str(error).strip().rpartition("\n")[2]
            raise AssertionError(f"{_named(spec)} fails in {processes} processes: {last}") from error
        parts = [torch.load(Path(folder, f"{rank}.pt")) for rank in range(processes)]
    found = {}
    for name, one in expected.items():
        shares = [part[name] for part in parts]
        is_own = name in inputs and one.ndim
        found[name] = torch.cat(shares) / processes if is_own else torch.stack(shares).mean(0)
    _check_near(f"{_named(spec)} in {processes} processes", found, expected)


def _share(rank: int, folder: str, processes: int, spec: LossSpec, inputs: _Inputs) -> None:
    """Save the loss and gradients of one process of a group."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=processes, timeout=_PATIENCE
    )
    loss = spec.build(process_group=distributed.group.WORLD).double()
    own = {name: one.chunk(processes)[rank] if one.ndim else one for name, one in inputs.items()}
    own = {name: one.clone().requires_grad_(not name.startswith("teacher_")) for name, one in own.items()}
    total = loss(**own).total
    torch.save({"total": total.detach()} | _gradients(loss, own, total), Path(folder, f"{rank}.pt"))
    distributed.barrier()  # a process that leaves while another one still connects would end that one with an error
    distributed.destroy_process_group()


def _check_near(what: str, found: _Inputs, expected: _Inputs) -> None:
    """Raise if values differ; the tolerance allows for gradients that are zero except for rounding."""
    for name, one in expected.items():
        assert name in found, f"{what}: {name} is missing"
        difference = float((found[name] - one).detach().norm() / one.detach().norm().clamp_min(1e-3))
        assert difference < _EXACT, f"{what}: {name} differs, with a relative error of {difference:.1e}"


def _named(spec: LossSpec) -> str:
    return type(spec).__name__
