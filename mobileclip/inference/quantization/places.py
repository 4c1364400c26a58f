"""Chooses the layers of a tower that compute in int8: those it speeds up, but for the most sensitive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import cast

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from mobileclip.inference.layers import is_grouped, weighted_layers
from mobileclip.inference.quantization.quality import TowerQuality
from mobileclip.inference.quantization.ranges import observed_ranges
from mobileclip.inference.quantization.rounding import Ranges, RoundedLayer, quantised_layers, rounded
from mobileclip.inference.quantization.sensitivity import each_alone, rounded_in_place, watched
from mobileclip.inference.quantization.tuning import tuning_loss
from mobileclip.strict import strict

# Inputs that each layer alone is measured on.
_FEW = 8


@attrs.frozen(kw_only=True, field_transformer=strict)
class PlacesSpec:
    """Chooses the layers that compute in int8; all others stay in float32.

    Args:
        grouped: whether grouped convolutions are: they lose most, and OpenVINO takes no less time with them in int8.
        outputs: whether what comes out of convolutions is, beside what goes into layers. Exports to runtimes that need
            these ranges find them, untuned.
        most_float: part of the multiplications that may stay in float32 besides, where the acceptance checks refuse a
            tower that rounds all these layers: of the layers that lose most for their size.

    Raises:
        ValueError: if a number is out of its range.
    """

    grouped: bool = False
    outputs: bool = False
    most_float: float = attrs.field(default=0.2, validator=[validators.ge(0), validators.le(1)])

    def observed(self, tower: nn.Module, batches: Callable[[], Iterable[Tensor]], *, whole: bool = False) -> Ranges:
        """Return the ranges of all layers that may be rounded, see `observed_ranges`."""
        kept = [name for name, layer in weighted_layers(tower) if is_grouped(layer) and not self.grouped]
        outputs = (nn.Conv2d,) if self.outputs else ()
        return observed_ranges(tower, batches, kept=kept, whole=whole, outputs=outputs)

    @torch.no_grad()
    def without_worst(
        self,
        tower: nn.Module,
        ranges: Ranges,
        checked: Sequence[Tensor],
        *,
        others: Tensor | None = None,
        tell: Callable[[str], object] = str,
    ) -> dict[str, Tensor]:
        """Return the ranges without those of the layers that lose most, as few as pass the checks with a margin.

        Where too little is left whatever is left out, it is what comes nearest.

        Args:
            tower: folded, in evaluation mode, in float32.
            ranges: of its layers.
            checked: inputs that it is decided by, batches; other ones than what is reported in the end.
            others: embeddings of the other tower, see `TowerQuality`.
            tell: called with the name of each layer that is measured.
        """
        if not self.most_float or not checked:
            return dict(ranges)
        expected = torch.cat([tower(one) for one in checked])

        def tried(left_out: Sequence[str]) -> tuple[bool, float, dict[str, Tensor]]:
            rest = _without(ranges, left_out)
            form = rounded(tower, rest)
            given = torch.cat([form(one) for one in checked])
            loss = float(tuning_loss(given, expected, relations=1.0))
            return TowerQuality.of(given, expected, others).has_margin, loss, rest

        tries = [tried(())]
        worst = [] if tries[0][0] else self._worst(tower, ranges, checked[0][:_FEW], tell)
        few, many = 0, 0
        while not tries[-1][0] and many < len(worst):
            few, many = many, min(max(1, 2 * many), len(worst))
            tries.append(tried(worst[:many]))
        if not tries[-1][0]:
            return min(tries, key=lambda one: one[1])[2]
        while many - few > 1:
            middle = (few + many) // 2
            tries.append(tried(worst[:middle]))
            few, many = (few, middle) if tries[-1][0] else (middle, many)
        return _without(ranges, worst[:many])

    def _worst(self, tower: nn.Module, ranges: Ranges, few: Tensor, tell: Callable[[str], object]) -> list[str]:
        """Return the layers that may stay in float32, those first that lose most for their multiplications."""
        expected, work = tower(few), _multiplications(tower, few)
        losses = {}

        def rounding(name: str, layer: nn.Module) -> AbstractContextManager[None]:
            one = RoundedLayer(layer, name, ranges)
            return rounded_in_place(layer, one.rounded_weight(), one.input, one.output)

        for name, given in each_alone(tower, few, weighted_layers(tower), quantised_layers(ranges), rounding):
            losses[name] = float(tuning_loss(given, expected, relations=1.0))
            tell(name)
        left, worst = self.most_float * sum(work[name] for name in losses), []
        for name in sorted(losses, key=lambda name: losses[name] / work[name], reverse=True):
            if work[name] <= left:
                left -= work[name]
                worst.append(name)
        return worst


def layers_in_float32(tower: nn.Module) -> list[str]:
    """Return the layers that a tower that carries ranges computes in float32 all the same."""
    quantised = quantised_layers(cast("Ranges", tower.ranges))
    return [name for name, _ in weighted_layers(tower) if name not in quantised]


def _without(ranges: Ranges, left_out: Sequence[str]) -> dict[str, Tensor]:
    return {name: values for name, values in ranges.items() if name.rpartition(".")[0] not in left_out}


def _multiplications(tower: nn.Module, inputs: Tensor) -> dict[str, int]:
    """Return how often each layer multiplies for these inputs."""
    found: dict[str, int] = {}
    sizes = {name: cast("Tensor", layer.weight)[0].numel() for name, layer in weighted_layers(tower)}

    def count(name: str, _: tuple[Tensor, ...], given: Tensor) -> None:
        found[name] = found.get(name, 0) + given.numel() * sizes[name]

    with watched(weighted_layers(tower), count):
        tower(inputs)
    return found
