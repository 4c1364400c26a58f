"""The sensitivity of a tower to each layer in int8: its error with one layer rounded and all others in float32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import cast

from torch import Tensor, nn

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
