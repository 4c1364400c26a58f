"""Input contracts of pretrained models: preprocessing settings that are saved with the weights.

Wrong preprocessing does not raise an error; it only gives wrong rankings. Therefore specs, checkpoints and exports
contain the input contracts, and the image transform and the tokenizer apply them.
"""

from __future__ import annotations

import hashlib
import re
from itertools import cycle, islice
from typing import Any, Literal

import attrs
from attrs import validators

from mobileclip.strict import NOT_IN_JSON, strict

Interpolation = Literal["bilinear", "bicubic"]
Fit = Literal["crop", "stretch"]
"""Ways to make an image square: crop its centre, or stretch the whole image."""
Decode = Literal["exact", "fast"]
"""Ways to decode a JPEG: `exact` at full resolution, `fast` at the resolution that the image transform needs."""
DECODES: tuple[Decode, ...] = ("exact", "fast")
Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

HIDDEN = "hidden"
"""No background: transparent pixels show their stored colour."""

MAX_SIZE = 16384
MAX_CHANNELS = 1024
MAX_VOCABULARY = 1 << 22

MAX_TOKENIZER_BYTES = 1 << 25
"""Maximum size of a `tokenizer.json`, in bytes."""

_NAMED_COLORS = {"white": "#ffffff", "black": "#000000"}
_COLOR_NAMES = {color: name for name, color in _NAMED_COLORS.items()}
_COLOR = re.compile(r"#[0-9a-f]{6}")

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _one_name(value: object) -> object:
    """Return the canonical name of a colour, so that two spellings of a colour compare equal."""
    return _COLOR_NAMES.get(value.lower(), value.lower()) if isinstance(value, str) else value


def _is_background(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if value not in (HIDDEN, *_NAMED_COLORS) and not _COLOR.fullmatch(value):
        raise ValueError(
            f"{attribute.name} is {value[:80]!r}, expected 'hidden', 'white', 'black' or a colour such as '#fbfaf8'"
        )


def _per_channel(least: float) -> Any:
    number = validators.and_(validators.ge(least), validators.le(1e3))
    return [validators.min_len(1), validators.max_len(MAX_CHANNELS), validators.deep_iterable(number)]


@attrs.frozen(kw_only=True, field_transformer=strict)
class ImageInput:
    """The image contract: composite on the background, resize the shorter side, centre-crop, `(pixel - mean) / std`.

    Pixels are in [0, 1] before the mean is subtracted.

    Args:
        size: side of the square input, in pixels.
        interpolation: filter of the (antialiased) resize.
        mean: mean of each channel, between -1000 and 1000, for pixels in [0, 1]; 0 subtracts nothing. The number of
            values is the number of channels. Three channels are red, green and blue; the caller defines the meaning of
            other channels.
        std: standard deviation of each channel, between 1e-6 and 1000, for pixels in [0, 1]; 1 does not scale.
        background: colour behind transparent pixels: `white`, `black` or `#rrggbb`; or `hidden`, which drops the
            transparency, so that transparent pixels show their stored colour, mostly black. The published models were
            trained with `hidden`.
        fit: method to make an image square: `crop` keeps its centre; `stretch` keeps the whole image, as SigLIP does.

    Examples:
        >>> ImageInput(size=256).background  # pixels in [0, 1], nothing subtracted
        'hidden'
        >>> ImageInput(size=32, background="#FFFFFF").background
        'white'
        >>> ImageInput(size=32, mean=(0.4, 0.5, 0.6)).of_channels(1).mean
        (0.5,)
    """

    size: int = attrs.field(validator=[validators.gt(0), validators.le(MAX_SIZE)])
    interpolation: Interpolation = attrs.field(default="bilinear", validator=validators.in_(("bilinear", "bicubic")))
    mean: tuple[float, ...] = attrs.field(default=(0.0, 0.0, 0.0), validator=_per_channel(-1e3))
    std: tuple[float, ...] = attrs.field(default=(1.0, 1.0, 1.0), validator=_per_channel(1e-6))
    background: str = attrs.field(default=HIDDEN, converter=_one_name, validator=_is_background)
    fit: Fit = attrs.field(default="crop", validator=validators.in_(("crop", "stretch")))

    def __attrs_post_init__(self) -> None:
        """Check that every channel has a mean and a standard deviation."""
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"'mean' of ImageInput: has {len(self.mean)} values but 'std' has {len(self.std)}; pass one per channel"
            )

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return len(self.mean)

    def of_channels(self, channels: int) -> ImageInput:
        """Return the contract for `channels` channels, with mean and std averaged for one channel, else repeated."""
        if not 1 <= channels <= MAX_CHANNELS:
            raise ValueError(f"the number of image channels must be 1 to {MAX_CHANNELS}, not {channels}")
        if channels == self.channels:
            return self
        mean, std = (
            (sum(one) / len(one),) if channels == 1 else tuple(islice(cycle(one), channels))
            for one in (self.mean, self.std)
        )
        return attrs.evolve(self, mean=mean, std=std)

    def require_rgb(self, what: str) -> None:
        """Raise an error if images do not have red, green and blue channels.

        Args:
            what: beginning of the message, such as "images are".

        Raises:
            ValueError: if the number of channels is not three.
        """
        if self.channels != 3:
            raise ValueError(
                f"{what} red, green and blue, but this model's images have {self.channels} channels; pass tensors "
                "(batch, channels, size, size) to the model, normalised by the model's mean and std"
            )

    @property
    def background_color(self) -> Color | None:
        """The colour of the background; None for `hidden`."""
        if self.background == HIDDEN:
            return None
        red, green, blue = bytes.fromhex(_NAMED_COLORS.get(self.background, self.background)[1:])
        return red, green, blue


_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = [validators.ge(0), validators.lt(MAX_VOCABULARY)]


def _is_sha256(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not _SHA256.fullmatch(value):
        raise ValueError(f"{attribute.name} is {value[:80]!r}, expected 64 hexadecimal digits in lower case")


@attrs.frozen(kw_only=True, field_transformer=strict)
class TokenizerFile:
    """A tokenizer other than CLIP's: a `tokenizer.json` of Hugging Face `tokenizers`, identified by its SHA-256.

    JSON holds only the SHA-256, so that specs stay small. This library's checkpoints store the text in their metadata,
    because users copy weights files, and soon lose a second file next to the weights. Two contracts with the same
    SHA-256 are equal, with or without the text.

    Args:
        sha256: SHA-256 of the file, in hexadecimal.
        start_id: id of the token at the start of every text; None if the tokenizer has no start token.
        end_id: id of the token at the end of every text; towers pool at the first position with this id.
        repair: whether to repair mojibake and unescape HTML entities before tokenization, as open_clip does.
        content: text of the file; None if only the SHA-256 is known. Only tokenization needs the text.

    Raises:
        ValueError: if the text does not match the SHA-256, or is larger than 32 MiB.
    """

    sha256: str = attrs.field(validator=_is_sha256)
    start_id: int | None = attrs.field(default=None, validator=validators.optional(_ID))
    end_id: int = attrs.field(validator=_ID)
    repair: bool = False
    content: str | None = attrs.field(default=None, eq=False, repr=False, metadata=NOT_IN_JSON)

    def __attrs_post_init__(self) -> None:
        """Check that the text matches the SHA-256."""
        if self.content is None:
            return
        if len(self.content) > MAX_TOKENIZER_BYTES:
            raise ValueError(f"the tokenizer.json has more than {MAX_TOKENIZER_BYTES:,} bytes, which is the maximum")
        found = tokenizer_sha256(self.content)
        if found != self.sha256:
            raise ValueError(
                f"the tokenizer.json differs from the tokenizer that the model was trained with: the file's SHA-256 is "
                f"{found}, expected {self.sha256}; use the file that came with the model"
            )


def tokenizer_sha256(content: str) -> str:
    """Return the SHA-256 of the text of a `tokenizer.json`, equal to the result of `sha256sum` for the file."""
    return hashlib.sha256(content.encode("utf-8", errors="surrogatepass")).hexdigest()


@attrs.frozen(kw_only=True, field_transformer=strict)
class TextInput:
    """The text contract: a fixed number of ids, with an end token after the text, then padding.

    By default, the ids are CLIP's lower-cased byte pairs between a start and an end token. The non-causal text towers
    attend to the padding, so a different length or padding id changes the embedding.

    Args:
        context_length: number of ids per text, including start and end tokens; longer texts are truncated, but keep
            the end token.
        vocab_size: number of ids; CLIP's two highest ids are the start and the end token.
        pad_id: id of the padding.
        tokenizer: tokenizer other than CLIP's, from `mobileclip.data.read_text_input`; None for CLIP's tokenizer.

    Examples:
        >>> TextInput().start_id, TextInput().end_id, TextInput().context_length
        (49406, 49407, 77)
    """

    context_length: int = attrs.field(default=77, validator=[validators.ge(3), validators.le(1 << 16)])
    vocab_size: int = attrs.field(default=49408, validator=[validators.gt(2), validators.le(MAX_VOCABULARY)])
    pad_id: int = attrs.field(default=0, validator=validators.ge(0))
    tokenizer: TokenizerFile | None = None

    def __attrs_post_init__(self) -> None:
        """Check that the padding, start and end ids are in the vocabulary."""
        named = {"pad_id": self.pad_id, "start_id": self.start_id, "end_id": self.end_id}
        for name, index in named.items():
            if index is not None and index >= self.vocab_size:
                raise ValueError(f"{name}={index} must be less than vocab_size, which is {self.vocab_size} ids")

    @property
    def start_id(self) -> int | None:
        """Id of the start-of-text token; None if the tokenizer has no start token."""
        return self.vocab_size - 2 if self.tokenizer is None else self.tokenizer.start_id

    @property
    def end_id(self) -> int:
        """Id of the end-of-text token; CLIP's highest id."""
        return self.vocab_size - 1 if self.tokenizer is None else self.tokenizer.end_id

    @property
    def pooled_id(self) -> int | None:
        """Id of the token at whose first position towers pool; None for a text's highest id, as in CLIP."""
        return None if self.tokenizer is None else self.tokenizer.end_id
