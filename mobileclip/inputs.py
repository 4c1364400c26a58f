"""What a pretrained model expects of its input: values that travel with its weights.

Wrong preprocessing does not fail, it only ranks wrongly. So the contract is a value: specs hold it, the image
transform and the tokenizer obey it, checkpoints and exports carry it.
"""

from __future__ import annotations

from typing import Literal

import attrs
from attrs import validators

from mobileclip.strict import strict

Interpolation = Literal["bilinear", "bicubic"]

MAX_SIZE = 16384

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@attrs.frozen(kw_only=True, field_transformer=strict)
class ImageInput:
    """The image contract: resize the shorter side, centre-crop, scale to [0, 1], then `(pixel - mean) / std`.

    Args:
        size: side of the square input, in pixels.
        interpolation: filter of the (antialiased) resize.
        mean: per RGB channel, in units of the [0, 1] pixel, at most 1000; zero means that nothing is subtracted.
        std: per RGB channel, in units of the [0, 1] pixel, from 1e-6 to 1000; one means that nothing is divided.
    """

    size: int = attrs.field(validator=[validators.gt(0), validators.le(MAX_SIZE)])
    interpolation: Interpolation = attrs.field(default="bilinear", validator=validators.in_(("bilinear", "bicubic")))
    mean: tuple[float, float, float] = attrs.field(
        default=(0.0, 0.0, 0.0),
        validator=validators.deep_iterable(validators.and_(validators.ge(-1e3), validators.le(1e3))),
    )
    std: tuple[float, float, float] = attrs.field(
        default=(1.0, 1.0, 1.0),
        validator=validators.deep_iterable(validators.and_(validators.ge(1e-6), validators.le(1e3))),
    )


@attrs.frozen(kw_only=True, field_transformer=strict)
class TextInput:
    """The text contract: lower-cased CLIP byte-pair ids, start and end tokens around, padded to a fixed length.

    The non-causal text towers attend to the padding, so another length or another padding id is another embedding.

    Args:
        context_length: number of ids per text, start and end tokens included; longer texts are cut in front of the end.
        vocab_size: number of ids; the two highest are the start and the end token.
        pad_id: id that fills the rest of the context.
    """

    context_length: int = attrs.field(default=77, validator=[validators.ge(3), validators.le(1 << 16)])
    vocab_size: int = attrs.field(default=49408, validator=[validators.gt(2), validators.le(1 << 22)])
    pad_id: int = attrs.field(default=0, validator=validators.ge(0))

    def __attrs_post_init__(self) -> None:
        """Check that the padding is one of the ids."""
        if self.pad_id >= self.vocab_size:
            raise ValueError(f"pad_id={self.pad_id} is none of the {self.vocab_size} ids of vocab_size")

    @property
    def start_id(self) -> int:
        """Id of the start-of-text token."""
        return self.vocab_size - 2

    @property
    def end_id(self) -> int:
        """Id of the end-of-text token, the highest of all: towers pool at its position."""
        return self.vocab_size - 1
