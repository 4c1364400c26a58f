"""Builds a module from a registered name or a spec."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Protocol

import attrs
from torch import nn

from mobileclip.registry import Registry, nearest


class Buildable(Protocol):
    """A spec with a `build()` method for its module.

    Examples:
        >>> class IdentitySpec(Buildable):
        ...     def build(self) -> nn.Module:
        ...         return nn.Identity()
        >>> build_model(IdentitySpec())
        Identity()
    """

    def build(self) -> nn.Module:
        """Return a new module with freshly initialised weights."""


_HOME = "mobileclip.encoders.specs"
_LISTED = "mobileclip list"

image_encoders: Registry[Buildable] = Registry("image_encoder", home=_HOME, listed=_LISTED)
"""Image encoders by name; third parties add theirs here or by an entry point in `mobileclip.image_encoder`."""
text_encoders: Registry[Buildable] = Registry("text_encoder", home=_HOME, listed=_LISTED)
"""Text encoders by name; third parties add theirs here or by an entry point in `mobileclip.text_encoder`."""
models: Registry[Buildable] = Registry("model", home=_HOME, listed=_LISTED)
"""Whole models by name; third parties add theirs here or by an entry point in `mobileclip.model`."""


def build_model(model: str | Buildable, *, in_channels: int | None = None, **changes: Any) -> nn.Module:
    """Return a new module, freshly initialised and in training form.

    Args:
        model: a spec, or the name of a whole model (`mobileclip_s2`), an image encoder (`mci2`) or a text encoder
            (`text_mct`). `mobileclip list` prints all names. The names in open_clip (`MobileCLIP-S2`) and timm
            (`fastvit_mci2`) also work.
        in_channels: number of image channels if not 3, such as 1 for depth images or more for satellite images.
            `ImageInput.of_channels` computes mean and std.
        changes: new values for fields of the spec, such as `drop_path=0.1`.

    Raises:
        ValueError: if the name is unknown; the message names the nearest known names.
        TypeError: if `changes` names a field that the spec lacks, or `in_channels` is set for a spec without image
            input.

    Examples:
        >>> build_model("mci0")(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 512])
        >>> build_model("fastvit_mci0", embedding_dim=256)(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 256])
        >>> build_model("mci0", in_channels=4)(torch.rand(2, 4, 64, 64)).shape
        torch.Size([2, 512])
        >>> build_model("mci5")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: unknown model 'mci5'; did you mean 'mci4' or 'mci3' or 'mci2'? ...
    """
    spec = named_spec(model) if isinstance(model, str) else model
    spec = _changed(spec, changes) if changes else spec
    if in_channels is not None:
        if not hasattr(spec, "with_channels"):
            raise TypeError(f"in_channels is for image encoders, but {type(spec).__name__} has no image input")
        spec = spec.with_channels(in_channels)
    return spec.build()


def _changed(spec: Any, changes: dict[str, Any]) -> Buildable:
    fields = [field.alias for field in attrs.fields(type(spec))] if attrs.has(type(spec)) else []
    for name in changes:
        if name not in fields:
            raise TypeError(f"{type(spec).__name__} has no field {name!r}; {nearest(name, fields)}")
    changed: Buildable = attrs.evolve(spec, **changes)
    return changed


def named_spec(name: str) -> Buildable:
    """Return the spec that is registered under a name, for a whole model or a single tower.

    Raises:
        ValueError: if the name is unknown; the message names the nearest known names.

    Examples:
        >>> named_spec("mci2").embedding_dim
        512
        >>> named_spec("MobileCLIP-S2") == named_spec("mobileclip_s2")
        True
    """
    registries = (models, image_encoders, text_encoders)
    for registry in registries:
        if name in registry:
            return registry[name]
    for registry in registries:
        with suppress(ValueError):
            return registry.resolve(name)
    everything: Registry[Buildable] = Registry("model", listed=_LISTED)
    for registry in registries:
        for known, spec in registry.items():
            everything.add(known, spec, replace=True)
    raise ValueError(everything.unknown(name))
