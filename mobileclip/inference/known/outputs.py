"""Known outputs of models: a text or a picture, and the numbers that somebody got for it."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs import validators

from mobileclip.serialization import from_json
from mobileclip.strict import strict

FOLDER = Path(__file__).parent
_MOST_BYTES = 1 << 20


@attrs.frozen(kw_only=True, field_transformer=strict)
class Picture:
    """A picture by its name and its SHA-256, in hexadecimal."""

    name: str
    sha256: str = attrs.field(validator=validators.matches_re(r"[0-9a-f]{64}"))


@attrs.frozen(kw_only=True, field_transformer=strict)
class KnownOutput:
    """A published embedding of a text or an image, or published probabilities of texts for an image.

    Args:
        model: its name.
        source: who says so.
        picture: that was embedded.
        texts: one that was embedded, or those that a picture was compared with.
        first: the first numbers of the embedding, of unit length.
        probabilities: of the texts: softmax of 100 times the cosines.
        tolerance: how far a number may be off, absolutely.
        factor: how many times as large, or as small, a number may be, where that is all that can be compared.

    Raises:
        ValueError: if it says nothing, or says two things.
    """

    model: str
    source: str
    picture: Picture | None = None
    texts: tuple[str, ...] = ()
    first: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()
    tolerance: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    factor: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(1)))

    def __attrs_post_init__(self) -> None:
        if (self.tolerance is None) == (self.factor is None):
            raise ValueError("numbers are compared by a tolerance or by a factor: give one of them")
        is_shown = self.picture is not None
        of_one = bool(self.first) and not self.probabilities and is_shown + len(self.texts) == 1
        of_several = bool(self.texts) and not self.first and is_shown and len(self.probabilities) == len(self.texts)
        if not (of_one or of_several):
            raise ValueError(
                "give the first numbers of one text's or picture's embedding, or a picture's probabilities of texts"
            )

    @property
    def expected(self) -> tuple[float, ...]:
        """The numbers that are compared."""
        return self.first or self.probabilities

    def __str__(self) -> str:
        """Say what is put in."""
        texts = ", ".join(map(repr, self.texts))
        return texts if self.picture is None else f"{self.picture.name}{f' and {texts}' if texts else ''}"


@attrs.frozen(kw_only=True, field_transformer=strict)
class KnownOutputs:
    """Known outputs, of one model or several."""

    outputs: tuple[KnownOutput, ...]


def known_outputs(path: Path | None = None) -> KnownOutputs:
    """Return the outputs that come with the package, or those in a file of one's own.

    Raises:
        ValueError: if it holds something else.
        OSError: if it cannot be read.
    """
    path = path or FOLDER / "outputs.json"
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} has more than {_MOST_BYTES:,} bytes, and known outputs are a few numbers")
    return from_json(path.read_text(encoding="utf-8"), KnownOutputs)
