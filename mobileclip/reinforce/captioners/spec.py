"""The base class and the registry of captioner specs."""

from __future__ import annotations

from abc import ABC, abstractmethod

import attrs

from mobileclip.registry import Registry
from mobileclip.reinforce.captioners.protocol import Captioner
from mobileclip.serialization import open_family


@attrs.frozen(kw_only=True)
class CaptionerSpec(ABC):
    """Base class of captioner specs; register your own in `captioners` or by an entry point.

    Examples:
        >>> from mobileclip.serialization import from_json, to_json
        >>> captioner = CocaCaptioner()
        >>> from_json(to_json(captioner, unstructure_as=CaptionerSpec), CaptionerSpec) == captioner
        True
    """

    @abstractmethod
    def build(self, device: str = "cpu") -> Captioner:
        """Return the captioner, its weights loaded.

        Args:
            device: where it computes, such as `cuda:1`.

        Raises:
            ValueError: if there are no such weights, or they cannot be used.
        """


captioners: Registry[type[CaptionerSpec]] = Registry("captioner")
"""Captioners by name; third parties add theirs here or by an entry point in `mobileclip.captioner`."""

open_family(CaptionerSpec, captioners)
