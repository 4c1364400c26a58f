"""Ranges of int8 to start from, those of the least error, and how sensitive a tower is to each layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from mobileclip.inference.quantization.rounding import LARGEST_VALUE, LARGEST_WEIGHT, on_grid, weighted_layers

Layers = Collection[tuple[str, nn.Module]]


def each_alone(
    tower: nn.Module,
    inputs: Tensor,
    layers: Layers,
    names: Collection[str],
    rounding: Callable[[str, nn.Module], AbstractContextManager[None]],
) -> Iterator[tuple[str, Tensor]]:
    """Yield the names of layers, in the order in which they compute, with the embeddings when each alone is rounded.

    What lies in front of a layer is computed once for all: about half of the work of as many passes.

    Args:
        tower: folded, under `torch.no_grad`; it is as it was when this ends.
        inputs: what it takes, a small batch.
        layers: all that are known by name; each computes once in a pass.
        names: of those that are rounded.
        rounding: from a layer to what lets it round while it is entered, such as `rounded_in_place`.
    """
    outputs: dict[str, Tensor] = {}
    with watched(layers, lambda name, _, output: outputs.update({name: output})):
        tower(inputs)
    modules = dict(layers)
    with ExitStack() as known:
        for name in list(outputs):
            if name in names:
                with rounding(name, modules[name]):
                    embeddings: Tensor = tower(inputs)
                yield name, embeddings
            # In front of the layers that follow, nothing changes any more.
            known.enter_context(_answering(modules[name], outputs.pop(name)))


@contextmanager
def rounded_in_place(
    layer: nn.Module,
    weight: Tensor,
    input_as: Callable[[Tensor], Tensor],
    output_as: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """Let a layer compute with another weight, on rounded values.

    Args:
        layer: a convolution, a linear layer or a table.
        weight: what it computes with meanwhile.
        input_as: rounds what goes in.
        output_as: rounds what comes out.
    """
    own = cast("Tensor", layer.weight)
    original = own.detach().clone()
    with ExitStack() as hooks:
        hooks.enter_context(layer.register_forward_pre_hook(lambda _, taken: tuple(map(input_as, taken))))
        if output_as is not None:
            hooks.enter_context(layer.register_forward_hook(lambda *called: output_as(called[-1])))
        try:
            own.copy_(weight)
            yield
        finally:
            own.copy_(original)


@contextmanager
def watched(layers: Layers, look: Callable[[str, tuple[Tensor, ...], Tensor], None]) -> Iterator[None]:
    """Let `look` see the name of each layer that computes, what it takes and what it gives."""
    with ExitStack() as hooks:
        for name, layer in layers:
            hooks.enter_context(
                layer.register_forward_hook(lambda _, taken, output, name=name: look(name, taken, output))
            )
        yield


@contextmanager
def _answering(layer: nn.Module, output: Tensor) -> Iterator[None]:
    """Let a layer give what is known of it, and compute nothing."""
    layer.forward = lambda *_: output  # of this one alone, until it is deleted
    try:
        yield
    finally:
        del layer.forward


# Parts of the whole range that are tried at either end, and of the largest weight.
_TRIED = torch.linspace(1.0, 0.25, 24)
_NUM_BINS = 2048
_TINY = 1e-12


@torch.no_grad()
def observed_ranges(
    tower: nn.Module,
    batches: Callable[[], Iterable[Tensor]],
    *,
    kept: Collection[str] = (),
    whole: bool = False,
    outputs: tuple[type[nn.Module], ...] = (nn.Conv2d,),
) -> dict[str, Tensor]:
    """Return ranges of the layers of a tower, see `rounding`; of outputs, by default, those of convolutions alone.

    ONNX Runtime computes convolutions in int8 only where their outputs are int8 too, LiteRT and XNNPACK all layers.

    Args:
        tower: folded, in evaluation mode, in float32.
        batches: gives the same example inputs each time; read for the ends, and again for what lies between them.
        kept: names of layers that stay in float32.
        whole: whether ranges reach from the least to the largest value, in place of those of the least error.
        outputs: kinds of layers whose outputs have a range.

    Raises:
        ValueError: if there are no inputs, or the tower computes what is not finite.
    """
    seen = {f"{name}.{kind}": _Seen() for name, layer in _chosen(tower, kept) for kind in _kinds(layer, outputs)}

    def see(name: str, taken: tuple[Tensor, ...], given: Tensor) -> None:
        for kind, values in (("input", taken[0]), ("output", given)):
            if (one := seen.get(f"{name}.{kind}")) is not None:
                one.see(values)

    for counting in (False,) if whole else (False, True):
        with watched(_chosen(tower, kept), see):
            for inputs in batches():
                tower(inputs)
        for name, one in seen.items():
            if not counting:
                one.end_widening(name)
    shares = torch.ones(1) if whole else _TRIED
    ranges = {
        f"{name}.weight": weight_steps(cast("Tensor", layer.weight), shares) for name, layer in _chosen(tower, kept)
    }
    return ranges | {name: value_range(one.counts, one.least, one.largest, shares) for name, one in seen.items()}


def _chosen(tower: nn.Module, kept: Collection[str]) -> list[tuple[str, nn.Module]]:
    return [(name, layer) for name, layer in weighted_layers(tower) if name not in kept]


def _kinds(layer: nn.Module, outputs: tuple[type[nn.Module], ...]) -> tuple[str, ...]:
    return ("input", "output") if isinstance(layer, outputs) else ("input",)


def weight_steps(weight: Tensor, shares: Tensor = _TRIED) -> Tensor:
    """Return the step of each output channel that rounds its weights with the least squared error.

    Shape:
        `(outputs, ...)` to `(outputs,)`.

    Args:
        weight: of a layer.
        shares: of the largest weight, that are tried.
    """
    rows = weight.detach().float().flatten(1)
    whole = rows.abs().amax(1, keepdim=True).clamp(min=_TINY) / LARGEST_WEIGHT
    tried = [whole * share for share in shares]
    zero = torch.zeros(())
    errors = [
        (on_grid(rows, step, zero, least=-LARGEST_WEIGHT, largest=LARGEST_WEIGHT) - rows).square().sum(1)
        for step in tried
    ]
    best = torch.stack(errors).argmin(0)
    return torch.cat(tried, dim=1).gather(1, best[:, None]).flatten()


def value_range(counts: Tensor, least: float, largest: float, shares: Tensor = _TRIED) -> Tensor:
    """Return the step and the zero point that round values with the least squared error; zero is on the grid.

    Shape:
        `(bins,)` to `(2,)`.

    Args:
        counts: of the values in bins of equal width.
        least: where the first bin starts, at most zero.
        largest: where the last one ends, at least zero.
        shares: of either end, that are tried.
    """
    edges = torch.linspace(least, largest, len(counts) + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    low, high = (end.reshape(-1, 1) for end in torch.meshgrid(least * shares, largest * shares, indexing="ij"))
    step = (high - low).clamp(min=_TINY) / LARGEST_VALUE
    zero = (-low / step).round()
    rounded = [on_grid(middles, *one, least=0, largest=LARGEST_VALUE) for one in zip(step, zero, strict=True)]
    errors = (torch.stack(rounded) - middles).double().square() @ counts
    best = errors.argmin()
    return torch.cat([step[best], zero[best]])


class _Seen:
    """The ends of all values that go by; then how many there are in each bin between them."""

    def __init__(self) -> None:
        self.least = self.largest = 0.0
        self.counts = torch.zeros(_NUM_BINS, dtype=torch.float64)
        self._any = self._counting = False

    def see(self, x: Tensor) -> None:
        if not self._counting:
            low, high = torch.aminmax(x)
            # NaN stays, where Python's min and max may lose it.
            self.least = float(torch.minimum(low, torch.tensor(self.least)))
            self.largest = float(torch.maximum(high, torch.tensor(self.largest)))
            self._any = True
        elif self.least < self.largest:
            self.counts += torch.histc(x.float(), _NUM_BINS, self.least, self.largest).double()

    def end_widening(self, name: str) -> None:
        if not self._any:
            raise ValueError(f"nothing went by {name}: ranges are found with inputs, and there were none for it")
        if not torch.tensor([self.least, self.largest]).isfinite().all():
            raise ValueError(
                f"{name} has values from {self.least} to {self.largest}, and no range of 8 bits holds them; "
                "check the model's weights"
            )
        self._counting = True
