"""Pictures and captions that another form of a model is compared with the model on."""

from __future__ import annotations

import json
from importlib import resources

import attrs
from attrs import validators

from mobileclip.strict import repeated

_FOLDER = "pictures"


@attrs.frozen(kw_only=True)
class Samples:
    """Real images and captions; every image is ranked against every caption, and the other way round.

    Args:
        name: of the data set, for the report.
        image_names: of the images, in their order.
        images: encoded images, at least two.
        captions: at least two, no two equal.

    Raises:
        ValueError: if there are too few, a caption comes twice, or names are missing.
    """

    name: str
    image_names: tuple[str, ...]
    images: tuple[bytes, ...] = attrs.field(repr=False, validator=validators.min_len(2))
    captions: tuple[str, ...] = attrs.field(repr=False, validator=validators.min_len(2))

    def __attrs_post_init__(self) -> None:
        """Check that every image has its name, and that no two captions could be taken for each other."""
        if len(self.image_names) != len(self.images):
            raise ValueError(f"{len(self.images)} images have {len(self.image_names)} names; give one for each")
        if twice := repeated(self.captions):
            raise ValueError(f"captions come twice, and ranking cannot tell them apart: {twice[:3]}")


def bundled_samples() -> Samples:
    """Return the twelve pictures that come with the package, with two captions each; all may be used freely."""
    folder = resources.files("mobileclip.inference.comparison") / _FOLDER
    captions: dict[str, list[str]] = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    return Samples(
        name="bundled",
        image_names=tuple(captions),
        images=tuple((folder / f"{name}.jpg").read_bytes() for name in captions),
        captions=tuple(caption for several in captions.values() for caption in several),
    )
