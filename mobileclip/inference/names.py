"""`list_models`: the models that are known by name."""

from __future__ import annotations

from fnmatch import fnmatchcase

from mobileclip.blocks import image_encoders, models, text_encoders
from mobileclip.encoders.checkpoints import PACKAGED, PRETRAINED


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Return the names of models and towers, sorted.

    Args:
        pattern: of the names, such as `*_s2`; upper and lower case are one.
        pretrained: only those with weights, published or in this package: what `mobileclip.load` takes as it is.

    Examples:
        >>> list_models("*s2")
        ['mobileclip2_s2', 'mobileclip_s2']
        >>> list_models("icons", pretrained=True), list_models("mci2", pretrained=True)
        (['icons'], [])
    """
    weights = {*PRETRAINED, *PACKAGED}
    names = weights if pretrained else {*models, *image_encoders, *text_encoders, *PACKAGED}
    return sorted(name for name in names if fnmatchcase(name.lower(), pattern.lower()))
