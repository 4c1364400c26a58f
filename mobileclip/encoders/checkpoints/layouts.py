"""Layouts: what other code calls our tensors, as ordered rules from our names to theirs; read in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache

import attrs
from torch import Tensor

from mobileclip.encoders.checkpoints.forms import Form, tensor_shapes
from mobileclip.encoders.classifier import ClassifierSpec
from mobileclip.encoders.dual import DualEncoderSpec
from mobileclip.encoders.families import ImageEncoderSpec, TextEncoderSpec
from mobileclip.registry import Registry


@attrs.frozen
class Reshape:
    """A tensor held in another shape: how to get there and back."""

    to_layout: Callable[[Tensor], Tensor]
    from_layout: Callable[[Tensor], Tensor]


TRANSPOSED = Reshape(lambda tensor: tensor.T, lambda tensor: tensor.T)
ONE_EMPTY_DIM = Reshape(lambda tensor: tensor[None], lambda tensor: tensor[0])
TWO_EMPTY_DIMS = Reshape(lambda tensor: tensor[None, None], lambda tensor: tensor[0, 0])


@attrs.frozen
class As:
    """A tensor's name in a checkpoint layout, with a reshape where its stored shape differs."""

    name: str
    reshape: Reshape | None = None


TowerSpec = ImageEncoderSpec | TextEncoderSpec
ModelSpec = DualEncoderSpec | ClassifierSpec | ImageEncoderSpec | TextEncoderSpec
Rule = tuple[str, str]


@attrs.frozen(eq=False)
class Layout:
    """A way to name and shape the tensors of a model: our own, or another code's by its own class below this one.

    Args:
        name: what people call it.
        image_prefix: beginning of every name of the image tower.
        text_prefix: beginning of every name of the text tower.
        rules: patterns of our names, as a dual encoder has them, and what each becomes, in order; from names that are
            changed so far.
        shapes: patterns of our names, and how what they name is held.
        has_bare_towers: whether it has a place for image towers without a projection, and for classifiers on them.
    """

    name: str
    image_prefix: str = "image_encoder."
    text_prefix: str = "text_encoder."
    rules: Sequence[Rule] = ()
    shapes: Sequence[tuple[str, Reshape]] = ()
    has_bare_towers: bool = False

    def check(self, tower: TowerSpec) -> None:
        """Raise if the layout, and the code that reads it, has no place for this tower.

        Raises:
            ValueError: naming what it has no place for.
        """

    def adapted(self, tower: ImageEncoderSpec, state: Mapping[str, Tensor]) -> ImageEncoderSpec:
        """Return the image tower as the code that reads this layout would build it around the tensors `state`."""
        del state
        return tower

    def constants(self, tower: TowerSpec) -> dict[str, Tensor]:
        """Return the tensors that the layout holds for `tower` and our model has no use for."""
        del tower
        return {}

    def rules_of(self, names: Collection[str]) -> Sequence[Rule]:
        """Return the rules for a model that has these names."""
        del names
        return self.rules

    def prefix(self, tower: TowerSpec) -> str:
        """Return the beginning of every name of `tower`."""
        return self.image_prefix if isinstance(tower, ImageEncoderSpec) else self.text_prefix

    def entries(self, spec: ModelSpec, form: Form) -> dict[str, As]:
        """Return their name and shape for each tensor of the model of `spec` in `form`, by our name."""
        return dict(_entries(self, spec, form))


@lru_cache(maxsize=64)
def _entries(layout: Layout, spec: ModelSpec, form: Form) -> dict[str, As]:
    """Return what `Layout.entries` does; not to be changed."""
    whole = {f"{prefix_of(spec)}{name}": name for name in tensor_shapes(spec, form)}
    rules = [(re.compile(pattern), by) for pattern, by in layout.rules_of(whole)]
    shapes = [(re.compile(pattern), reshape) for pattern, reshape in layout.shapes]
    entries = {}
    for full, own in whole.items():
        theirs = full
        for pattern, by in rules:
            theirs = pattern.sub(by, theirs)
        entries[own] = As(theirs, next((reshape for pattern, reshape in shapes if pattern.search(full)), None))
    return entries


def towers(spec: ModelSpec) -> list[tuple[str, TowerSpec]]:
    """Return each tower of `spec` with the beginning of our names for its tensors."""
    if isinstance(spec, DualEncoderSpec):
        return [("image_encoder.", spec.image), ("text_encoder.", spec.text)]
    return [("image_encoder.", spec.image)] if isinstance(spec, ClassifierSpec) else [("", spec)]


def prefix_of(spec: ModelSpec) -> str:
    """Return the prefix of a tower's names in a dual encoder's checkpoint; empty for whole models."""
    if isinstance(spec, (DualEncoderSpec, ClassifierSpec)):
        return ""
    return "image_encoder." if isinstance(spec, ImageEncoderSpec) else "text_encoder."


OWN = Layout("mobileclip")
"""Our names, which a tower has as in a dual encoder."""

layouts: Registry[Layout] = Registry("checkpoint_layout")
"""Layouts of checkpoints by name, without our own.

Third parties add theirs here or by an entry point in `mobileclip.checkpoint_layout`.
"""
