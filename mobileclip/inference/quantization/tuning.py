"""A tower's ranges and rounding, tuned on the tower's own embeddings in float32.

The whole tower is tuned at once: its embeddings are what counts, and no kind of tower has to say what its blocks are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import attrs
import numpy as np
import torch
from attrs import validators
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.data.randomness import seeded_rng
from mobileclip.inference.quantization.rounding import Ranges, rounded, rounded_layers, roundings
from mobileclip.strict import strict

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
