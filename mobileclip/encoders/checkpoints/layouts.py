"""Layouts: what other code calls our tensors. One table per layout, by block, read in both directions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache

import attrs
from torch import Tensor, nn

from mobileclip.encoders.checkpoints.forms import Form, skeleton, tensor_shapes
from mobileclip.encoders.classifier import ClassifierSpec
from mobileclip.encoders.dual import DualEncoderSpec
from mobileclip.encoders.families import ImageEncoderSpec, TextEncoderSpec
from mobileclip.registry import Registry


@attrs.frozen
class Reshape:
    """A tensor held in another shape: how to get there and back."""

    to_layout: Callable[[Tensor], Tensor]
    from_layout: Callable[[Tensor], Tensor]


@attrs.frozen
class As:
    """What a layout calls a part of a module, and the shape it holds it in.

    Args:
        name: their name below the module that owns the part; empty where they have no level of their own.
        reshape: how the tensor's shape differs, if it does.
    """

    name: str
    reshape: Reshape | None = None


TRANSPOSED = Reshape(lambda tensor: tensor.T, lambda tensor: tensor.T)
ONE_EMPTY_DIM = Reshape(lambda tensor: tensor[None], lambda tensor: tensor[0])
TWO_EMPTY_DIMS = Reshape(lambda tensor: tensor[None, None], lambda tensor: tensor[0, 0])

TowerSpec = ImageEncoderSpec | TextEncoderSpec
ModelSpec = DualEncoderSpec | ClassifierSpec | ImageEncoderSpec | TextEncoderSpec
Table = Mapping[str, As]
Tables = Mapping[type[nn.Module], Table]


def names(**parts: str) -> dict[str, As]:
    """Return a table from the library's one-part names to the layout's."""
    return {own: As(other) for own, other in parts.items()}


class Layout(ABC):
    """A foreign way to name and shape the tensors of a dual encoder.

    Class attributes:
        name: what people call it.
        image_prefix: beginning of every name of the image tower.
        text_prefix: beginning of every name of the text tower.
        has_bare_towers: whether it has a place for image towers without a projection, and for classifiers on them.
    """

    name: str
    image_prefix: str
    text_prefix: str
    has_bare_towers: bool = False

    @abstractmethod
    def tables(self, tower: TowerSpec) -> Tables:
        """Return what the layout calls the parts of each block of `tower`."""

    @abstractmethod
    def check(self, tower: TowerSpec) -> None:
        """Raise if the layout, and the code that reads it, has no place for this tower.

        Raises:
            ValueError: naming what it has no place for.
        """

    @abstractmethod
    def adapted(self, tower: ImageEncoderSpec, state: Mapping[str, Tensor]) -> ImageEncoderSpec:
        """Return the image tower as the code that reads this layout would build it around the tensors `state`."""

    def constants(self, tower: TowerSpec) -> dict[str, Tensor]:
        """Return the tensors that the layout holds for `tower` and our model has no use for."""
        del tower
        return {}

    def prefix(self, tower: TowerSpec) -> str:
        """Return the beginning of every name of `tower`."""
        return self.image_prefix if isinstance(tower, ImageEncoderSpec) else self.text_prefix

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether a file with these names is of this layout."""
        return any(name.startswith((self.image_prefix, self.text_prefix)) for name in state)

    def entries(self, spec: ModelSpec, form: Form) -> dict[str, As]:
        """Return their name and shape for each tensor of the model of `spec` in `form`, by our name."""
        entries = {
            our_prefix + name: entry
            for our_prefix, tower in towers(spec)
            for name, entry in _tower_entries(self, tower, form).items()
        }
        for name in tensor_shapes(spec, form).keys() - entries.keys():
            entries[name] = As(name)
        return entries


@lru_cache(maxsize=64)
def _tower_entries(layout: Layout, tower: TowerSpec, form: Form) -> dict[str, As]:
    """Return what `Layout.entries` does for one tower; not to be changed."""
    model, tables, prefix = skeleton(tower, "training"), layout.tables(tower), layout.prefix(tower)
    return {name: _translated(name, model, tables, prefix) for name in tensor_shapes(tower, form)}


def towers(spec: ModelSpec) -> list[tuple[str, TowerSpec]]:
    """Return each tower of `spec` with the beginning of our names for its tensors."""
    if isinstance(spec, DualEncoderSpec):
        return [("image_encoder.", spec.image), ("text_encoder.", spec.text)]
    if isinstance(spec, ClassifierSpec):
        return [("image_encoder.", spec.image)]
    return [("", spec)]


def _translated(name: str, tower: nn.Module, tables: Tables, prefix: str) -> As:
    """Walk down the parts of `name`, asking at each module for what its class's table says of the parts below.

    The tower is in training form even where the name is of a folded one: folding changes the class of a block, and its
    table lists the names of both forms.
    """
    parts = name.split(".")
    module: nn.Module | None = tower
    translated: list[str] = []
    reshape = None
    while parts:
        entry, length = _longest_entry(module, parts, tables)
        if entry.name:
            translated.append(entry.name)
        reshape = entry.reshape
        for part in parts[:length]:
            module = dict(module.named_children()).get(part) if module is not None else None
        parts = parts[length:]
    return As(prefix + ".".join(translated), reshape)


def _longest_entry(module: nn.Module | None, parts: list[str], tables: Tables) -> tuple[As, int]:
    for cls in type(module).__mro__:
        table = tables.get(cls, {})
        for length in range(len(parts), 0, -1):
            entry = table.get(".".join(parts[:length]))
            if entry is not None:
                return entry, length
    return As(parts[0]), 1


layouts: Registry[Layout] = Registry("checkpoint_layout")
"""Layouts of checkpoints by name.

Third parties add theirs here or by an entry point in `mobileclip.checkpoint_layout`.
"""
