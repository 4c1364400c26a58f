"""From a name or a spec to a module."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from mobileclip.registry import Registry


class Buildable(Protocol):
    """A spec that knows the module it describes.

    Examples:
        >>> class IdentitySpec(Buildable):
        ...     def build(self) -> nn.Module:
        ...         return nn.Identity()
        >>> build_model(IdentitySpec())
        Identity()
    """

    def build(self) -> nn.Module:
        """Return a new module with freshly initialised weights."""


image_encoders: Registry[Buildable] = Registry("image_encoder")
"""Image encoders by name; third parties add theirs here or by an entry point in `mobileclip.image_encoder`."""
text_encoders: Registry[Buildable] = Registry("text_encoder")
"""Text encoders by name; third parties add theirs here or by an entry point in `mobileclip.text_encoder`."""
models: Registry[Buildable] = Registry("model")
"""Whole models by name; third parties add theirs here or by an entry point in `mobileclip.model`."""


def build_model(model: str | Buildable) -> nn.Module:
    """Return a new module, freshly initialised and in training form.

    Args:
        model: a spec, or a name: of a whole model (`mobileclip_s2`), an image encoder (`mci2`) or a text encoder
            (`text_mct`). `mobileclip list` prints them all.

    Raises:
        ValueError: if the name is unknown; the message has the nearest ones.

    Examples:
        >>> build_model("mci0")(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 512])
        >>> build_model("mci5")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: unknown model 'mci5'; did you mean 'mci4' or 'mci3' or 'mci2'? ...
    """
    return (named_spec(model) if isinstance(model, str) else model).build()


def named_spec(name: str) -> Buildable:
    """Return the spec registered under a name, of a whole model or of one tower.

    Raises:
        ValueError: if the name is unknown; the message has the nearest ones.

    Examples:
        >>> named_spec("mci2").embedding_dim
        512
        >>> [stage.dim for stage in named_spec("mci2").stages]
        [80, 160, 320, 640]
    """
    everything: Registry[Buildable] = Registry("model")
    for registry in (models, image_encoders, text_encoders):
        for known, spec in registry.items():
            everything.add(known, spec)
    return everything.resolve(name)
