"""Ranges and rounding of a tower, tuned on its own embeddings: which layers, how good, kept where it stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import attrs
import numpy as np
import torch
from attrs import validators
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip import storage
from mobileclip.data.randomness import seeded_rng
from mobileclip.encoders.checkpoints.saving import write_tensors
from mobileclip.inference.comparison import LEAST_COSINE, first_results, least_agreement
from mobileclip.inference.quantization.ranges import each_alone, observed_ranges, rounded_in_place, watched
from mobileclip.inference.quantization.rounding import (
    Ranges,
    RoundedLayer,
    is_grouped,
    quantised_layers,
    rounded,
    rounded_layers,
    roundings,
    weighted_layers,
)
from mobileclip.strict import strict
from mobileclip.tensor_files import read_tensors

_CHANCE = 0.025


@attrs.frozen(kw_only=True)
class Agreement:
    """The number of queries whose first result in int8 is that in float32.

    Args:
        same: that have.
        total: of all, at least 1.

    Examples:
        >>> str(Agreement(same=49, total=50))
        '98.0% of 50 (89.4% to 99.9%)'
    """

    same: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the part that agrees, Clopper and Pearson's."""
        from scipy.special import betaincinv

        same, others = self.same, self.total - self.same
        low = float(betaincinv(same, others + 1, _CHANCE)) if same else 0.0
        return low, float(betaincinv(same + 1, others, 1 - _CHANCE)) if others else 1.0

    def __str__(self) -> str:
        """Return the part with its interval, for a person."""
        low, high = self.interval
        return f"{self.same / self.total:.1%} of {self.total:,} ({low:.1%} to {high:.1%})"


@attrs.frozen(kw_only=True)
class TowerQuality:
    """Cosines and rankings of an int8 tower's embeddings against those in float32.

    Args:
        num_inputs: that it was measured on.
        smallest_cosine: of an embedding with that in float32.
        mean_cosine: over the inputs.
        finds: what the inputs find first, among the other tower's embeddings in float32; among one another where there
            is no other tower.
        is_found: what the other tower's inputs find first among these; None where there are none.
    """

    num_inputs: int
    smallest_cosine: float
    mean_cosine: float
    finds: Agreement
    is_found: Agreement | None = None

    @classmethod
    def of(cls, embeddings: Tensor, expected: Tensor, others: Tensor | None = None) -> TowerQuality:
        """Return what embeddings keep of those that are expected.

        Shape:
            all `(inputs, dim)`; at least two inputs.

        Args:
            embeddings: in int8.
            expected: the same in float32.
            others: of the other tower, in float32.
        """
        cosines = torch.cosine_similarity(embeddings.double(), expected.double(), dim=1)
        found = None
        if others is None:
            finds = _agreement(first_results(embeddings, embeddings), first_results(expected, expected))
        else:
            finds = _agreement(first_results(embeddings, others), first_results(expected, others))
            found = _agreement(first_results(others, embeddings), first_results(others, expected))
        return cls(
            num_inputs=len(embeddings),
            smallest_cosine=float(cosines.min()),
            mean_cosine=float(cosines.mean()),
            finds=finds,
            is_found=found,
        )

    @property
    def refusal(self) -> str:
        """Why the acceptance checks of int8 refuse the tower; empty where they do not."""
        if not self.smallest_cosine >= LEAST_COSINE["int8"]:
            return f"the smallest cosine is {self.smallest_cosine:.4f}, expected at least {LEAST_COSINE['int8']}"
        both = [one for one in (self.finds, self.is_found) if one is not None]
        same, total = sum(one.same for one in both), sum(one.total for one in both)
        if same / total < (least := least_agreement(total)):
            return f"{same / total:.1%} of {total:,} first results are as in float32, expected at least {least:.1%}"
        return ""

    @property
    def has_margin(self) -> bool:
        """Whether it passes, and of cosine loses half of what it may: what is decided on few inputs should."""
        return not self.refusal and 1 - self.smallest_cosine <= (1 - LEAST_COSINE["int8"]) / 2

    def __str__(self) -> str:
        """Return a line for a person."""
        found = "" if self.is_found is None else f", and is found by {self.is_found}"
        verdict = f"; refused: {self.refusal}" if self.refusal else "; passes the acceptance checks of int8"
        return (
            f"{self.num_inputs:,} held-out inputs, cosine {self.mean_cosine:.5f}, at least {self.smallest_cosine:.4f}; "
            f"finds the same first as in float32: {self.finds}{found}{verdict}"
        )


def _agreement(given: Tensor, expected: Tensor) -> Agreement:
    return Agreement(same=int((given == expected).sum()), total=len(given))


_STEP, _BEST = "step", "best"
# What fewer steps than this move is small beside what a few inputs say by chance, at a rate that falls with them.
_SETTLED = 40
# Judgements of a tuning beside that of its start, and inputs that it is judged by.
_JUDGED, _FEWEST_CHECKED, _MOST_CHECKED = 8, 4, 64


@attrs.frozen(kw_only=True, field_transformer=strict)
class TuningSpec:
    """The optimisation that tunes a tower for int8: steps, learning rate and loss weights.

    Args:
        num_steps: of the optimiser, Adam.
        learning_rate: at the start; it falls to zero along a cosine. In fewer than 40 steps it is less, in proportion.
        relations: weight of the cosines among the embeddings of a batch, by which rankings are made, beside each
            embedding's own.
        round_weights: whether weights learn which neighbour on the grid they take; the nearest without it.
    """

    num_steps: int = attrs.field(default=200, validator=validators.ge(1))
    learning_rate: float = attrs.field(default=1e-2, validator=validators.gt(0))
    relations: float = attrs.field(default=10.0, validator=validators.ge(0))
    round_weights: bool = True

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        start = self.learning_rate * min(1.0, self.num_steps / _SETTLED)
        return start * (1 + math.cos(math.pi * step / self.num_steps)) / 2


def batches_of(inputs: Tensor, *, batch_size: int, seed: int = 0) -> Callable[[int], Tensor]:
    """Return the inputs of each step, a function of the step alone: shuffled, each once before any comes twice.

    What is left over at the end of a round is left out of it.

    Args:
        inputs: what a tower takes.
        batch_size: at least 1; as many as there are, where there are fewer.
        seed: of the order.
    """
    size = min(batch_size, len(inputs))
    per_round = len(inputs) // size

    def batch(step: int) -> Tensor:
        number, place = divmod(step, per_round)
        order = np.argsort(seeded_rng(seed, "tuning", number).random(len(inputs)), kind="stable")
        return inputs[torch.from_numpy(order[place * size : (place + 1) * size])]

    return batch


def num_checked(num_inputs: int) -> int:
    """Return how many of a tower's inputs decide what is kept of a tuning, in place of being learned from."""
    return min(_MOST_CHECKED, max(_FEWEST_CHECKED, num_inputs // 8), num_inputs // 2)


def tuning_loss(embeddings: Tensor, expected: Tensor, *, relations: float) -> Tensor:
    """Return the distance of embeddings from the expected ones.

    The mean of `1 - cos`, and `relations` times the mean squared difference of the cosines within the batch.

    Shape:
        `(batch, dim)` both.
    """
    own, other = F.normalize(embeddings, dim=1), F.normalize(expected, dim=1)
    # `1 - cos` of unit vectors, without the difference of two numbers that are almost one.
    each = (own - other).square().sum(1).mean() / 2
    return each + relations * (own @ own.T - other @ other.T).square().mean()


class Tuning:
    """A tower that is being tuned, step by step; where it was left, it goes on to the same end.

    Args:
        tower: folded, in evaluation mode, in float32; the teacher. It stays as it is.
        ranges: to start from, see `observed_ranges`.
        batches: the inputs of each step, see `batches_of`.
        spec: how it is tuned.
        checked: inputs that nothing is learned from, batches: of several states by the way, the start's among them, the
            tower ends with the one that is nearest on these. Without them, with the last one.

    Raises:
        ValueError: if there are ranges of a layer that the tower does not have.
    """

    def __init__(
        self,
        tower: nn.Module,
        ranges: Ranges,
        batches: Callable[[int], Tensor],
        spec: TuningSpec | None = None,
        *,
        checked: Sequence[Tensor] = (),
    ) -> None:
        self.spec = spec or TuningSpec()
        self.teacher, self.tower = tower, rounded(tower, ranges)
        self.step = 0
        self._batches = batches
        self._learned = {
            f"{name}.{part}": parameter
            for name, layer in rounded_layers(self.tower)
            for part, parameter in layer.named_parameters()
            if not part.startswith("layer.") and (self.spec.round_weights or part != "rounding.shift")
        }
        self._optimizer = torch.optim.Adam(list(self._learned.values()), lr=self.spec.learning_rate)
        self._checked = checked
        self._best: dict[str, Tensor] = {}
        self._least_loss = math.inf

    @property
    def done(self) -> bool:
        """Whether all steps are made."""
        return self.step >= self.spec.num_steps

    def advance(self) -> float:
        """Make a step, and return the loss before it."""
        if self.step == 0:
            self._judge()
        inputs = self._batches(self.step)
        with torch.no_grad():
            expected = self.teacher(inputs)
        with torch.enable_grad():
            loss = tuning_loss(self.tower(inputs), expected, relations=self.spec.relations)
            # Of these alone: weights and biases are the teacher's too.
            gradients = torch.autograd.grad(loss, list(self._learned.values()), allow_unused=True)
        for parameter, gradient in zip(self._learned.values(), gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.param_groups[0]["lr"] = self.spec.rate(self.step)
        self._optimizer.step()
        self._optimizer.zero_grad()
        for _, part in roundings(self.tower):
            part.hold()
        self.step += 1
        if self.done or self.step % -(-self.spec.num_steps // _JUDGED) == 0:
            self._judge()
        return float(loss.detach())

    @torch.no_grad()
    def _judge(self) -> None:
        """Keep the state if it is the best so far; in the end, go back to the best."""
        if not self._checked:
            return
        given, expected = (torch.cat([form(one) for one in self._checked]) for form in (self.tower, self.teacher))
        loss = float(tuning_loss(given, expected, relations=self.spec.relations))
        if loss < self._least_loss:
            self._least_loss = loss
            self._best = {name: parameter.detach().clone() for name, parameter in self._learned.items()}
        if self.done:
            for name, best in self._best.items():
                self._learned[name].copy_(best)

    def state(self) -> dict[str, Tensor]:
        """Return all that `restore` needs, as copies by name."""
        found = {_STEP: torch.tensor(self.step), _BEST: torch.tensor(self._least_loss, dtype=torch.float64)}
        found |= {f"{name}/{_BEST}": tensor.clone() for name, tensor in self._best.items()}
        for name, parameter in self._learned.items():
            kept = {"value": parameter.detach(), **self._optimizer.state.get(parameter, {})}
            found |= {f"{name}/{kind}": tensor.clone() for kind, tensor in kept.items()}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where `state` was taken of a tuning of the same tower, ranges, batches and spec.

        Raises:
            ValueError: if it was another's.
        """
        kinds = {name: dict[str, Tensor]() for name in self._learned}
        for name, tensor in state.items():
            of, _, kind = name.rpartition("/")
            kinds.setdefault(of, {})[kind] = tensor
        of_all = kinds.pop("", {})
        step = of_all.get(_STEP)
        own = {name: parameter.shape for name, parameter in self._learned.items()}
        held = {name: found["value"].shape for name, found in kinds.items() if "value" in found}
        if step is None or own != held:
            differing = sorted(name for name in own.keys() | held.keys() if own.get(name) != held.get(name))
            first = differing[0] if differing else _STEP
            raise ValueError(
                f"the state is of another tuning: {first!r} is not what this one has; start anew, or give the tower "
                "and the spec that it was taken of"
            )
        best = {name: found.pop(_BEST) for name, found in kinds.items() if _BEST in found}
        self._best = {name: tensor.clone() for name, tensor in best.items()}
        self._least_loss = float(of_all.get(_BEST, math.inf))
        with torch.no_grad():
            for name, parameter in self._learned.items():
                found = kinds[name]
                parameter.copy_(found.pop("value"))
                if found:
                    self._optimizer.state[parameter] = {kind: tensor.clone() for kind, tensor in found.items()}
                else:
                    self._optimizer.state.pop(parameter, None)
        self.step = int(step)


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


_OF = "mobileclip.tuning_of"


class SavedTunings:
    """The tunings of a model's towers in a file beside the output; none where there is no file yet.

    Args:
        output: what is written in the end.
        of: digest of the model, the inputs and the choices.
        anew: whether a file of another tuning is left aside, and replaced.

    Raises:
        ValueError: if there is a file of another tuning, and it is not to be replaced.
        CheckpointError: if it cannot be read.
    """

    def __init__(self, output: Path, *, of: str, anew: bool) -> None:
        self.path = state_file(output)
        self._of = of
        self._tensors: dict[str, Tensor] = {}
        if not self.path.exists():
            return
        tensors, metadata = read_tensors(self.path)
        if metadata.get(_OF) == of:
            self._tensors = tensors
        elif not anew:
            raise ValueError(
                f"{self.path} is left of a tuning of another model, other inputs or other choices; give the same again "
                "to go on with it, or --overwrite to start anew"
            )

    def of_tower(self, tower: str) -> dict[str, Tensor]:
        """Return what was kept of a tower by its name; nothing where it has not begun."""
        prefix = f"{tower}:"
        return {name.removeprefix(prefix): tensor for name, tensor in self._tensors.items() if name.startswith(prefix)}

    def keep(self, tower: str, tensors: dict[str, Tensor]) -> None:
        """Write what is to be kept of a tower, beside the others; the file is there whole, as before or as now."""
        prefix = f"{tower}:"
        others = {name: tensor for name, tensor in self._tensors.items() if not name.startswith(prefix)}
        self._tensors = others | {f"{prefix}{name}": tensor.contiguous() for name, tensor in tensors.items()}
        write_tensors(self.path, self._tensors, {_OF: self._of})

    def remove(self) -> None:
        """Remove the file."""
        storage.remove(self.path)


def state_file(output: Path) -> Path:
    """Return where the state of a tuning is, beside what it writes in the end."""
    return output.with_name(f"{output.stem}.tuning.safetensors")
