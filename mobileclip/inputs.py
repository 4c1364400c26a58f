"""What a pretrained model expects of its input: values that travel with its weights.

Wrong preprocessing does not fail, it only ranks wrongly. So the contract is a value: specs hold it, the image
transform and the tokenizer obey it, checkpoints and exports carry it.
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
"""How a picture is made square: its centre, or all of it with its sides pulled to one length."""
Decode = Literal["exact", "fast"]
"""How much of a JPEG is decoded: all of it, or no more than is needed."""
DECODES: tuple[Decode, ...] = ("exact", "fast")
Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

HIDDEN = "hidden"
"""The background that is none: the colour below transparent pixels shows, as it is stored."""

MAX_SIZE = 16384
MAX_CHANNELS = 1024
MAX_VOCABULARY = 1 << 22

MAX_TOKENIZER_BYTES = 1 << 25
"""Largest `tokenizer.json` that is read."""

_NAMED_COLORS = {"white": "#ffffff", "black": "#000000"}
_COLOR_NAMES = {color: name for name, color in _NAMED_COLORS.items()}
_COLOR = re.compile(r"#[0-9a-f]{6}")

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _one_name(value: object) -> object:
    """Return a colour as it is called everywhere, so that equal backgrounds make equal contracts."""
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
    """The image contract: put on the background, resize the shorter side, centre-crop, then `(pixel - mean) / std`.

    Pixels are in [0, 1] when the mean is subtracted.

    Args:
        size: side of the square input, in pixels.
        interpolation: filter of the (antialiased) resize.
        mean: per channel, in units of the [0, 1] pixel, at most 1000; zero means that nothing is subtracted. There are
            as many channels as values: three are red, green and blue, and what others are is up to the caller.
        std: per channel, in units of the [0, 1] pixel, from 1e-6 to 1000; one means that nothing is divided.
        background: what transparent pictures are put on: `white`, `black` or `#rrggbb`; or `hidden`, which drops the
            transparency, so that the stored colour below it shows, mostly black. The published models were trained so.
        fit: how a picture is made square: `crop` takes its centre, `stretch` all of it, as SigLIP does.

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
        """Check that every channel has a mean and a deviation."""
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"'mean' of ImageInput: has {len(self.mean)} values and 'std' has {len(self.std)}; each channel has one"
            )

    @property
    def channels(self) -> int:
        """How many channels an image has."""
        return len(self.mean)

    def of_channels(self, channels: int) -> ImageInput:
        """Return the contract of images of other channels: for one, mean and std are averaged; for more, repeated."""
        if not 1 <= channels <= MAX_CHANNELS:
            raise ValueError(f"an image has 1 to {MAX_CHANNELS} channels, not {channels}")
        if channels == self.channels:
            return self
        mean, std = (
            (sum(one) / len(one),) if channels == 1 else tuple(islice(cycle(one), channels))
            for one in (self.mean, self.std)
        )
        return attrs.evolve(self, mean=mean, std=std)

    def require_rgb(self, what: str) -> None:
        """Raise unless images have the channels of pictures.

        Args:
            what: has no others, as a sentence begins.

        Raises:
            ValueError: if they are others.
        """
        if self.channels != 3:
            raise ValueError(
                f"{what} red, green and blue, and this model's images have {self.channels} channels; give the model "
                "tensors (batch, channels, size, size), normalised by its mean and std"
            )

    @property
    def background_color(self) -> Color | None:
        """The colour of the background; None of `hidden`, which has none."""
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
    """A tokenizer other than CLIP's: the `tokenizer.json` of Hugging Face `tokenizers`, named by its SHA-256.

    JSON holds the name alone, so that specs stay small wherever they are repeated. The text travels in the metadata of
    our checkpoints, for a file of weights is what people copy: a second file beside it is soon lost, or another
    model's. Two contracts with one SHA-256 are equal, with the text or without.

    Args:
        sha256: sha256 of the file, in hexadecimal.
        start_id: first of every text; None for a tokenizer that has no such token.
        end_id: behind every text: towers pool at its first place.
        repair: whether mojibake is repaired and HTML entities are unescaped first, as open_clip does.
        content: the file's text; None where only the name is known, which is enough for all but making ids.

    Raises:
        ValueError: if the text is another than the SHA-256 says, or larger than 32 MiB.
    """

    sha256: str = attrs.field(validator=_is_sha256)
    start_id: int | None = attrs.field(default=None, validator=validators.optional(_ID))
    end_id: int = attrs.field(validator=_ID)
    repair: bool = False
    content: str | None = attrs.field(default=None, eq=False, repr=False, metadata=NOT_IN_JSON)

    def __attrs_post_init__(self) -> None:
        """Check that the text is the file that is named."""
        if self.content is None:
            return
        if len(self.content) > MAX_TOKENIZER_BYTES:
            raise ValueError(f"a tokenizer.json has up to {MAX_TOKENIZER_BYTES:,} bytes, and this one has more")
        found = tokenizer_sha256(self.content)
        if found != self.sha256:
            raise ValueError(
                f"the tokenizer.json is not the one that the model was trained with: its SHA-256 is {found}, and the "
                f"model's is {self.sha256}; give the file that came with the model"
            )


def tokenizer_sha256(content: str) -> str:
    """Return the SHA-256 of the text of a `tokenizer.json`, as `sha256sum` gives it for the file."""
    return hashlib.sha256(content.encode("utf-8", errors="surrogatepass")).hexdigest()


@attrs.frozen(kw_only=True, field_transformer=strict)
class TextInput:
    """The text contract: ids of a fixed length, an end token behind the text, then padding.

    CLIP's lower-cased byte-pair ids, start and end tokens around, unless `tokenizer` says otherwise. The non-causal
    text towers attend to the padding, so another length or another padding id is another embedding.

    Args:
        context_length: number of ids per text, start and end tokens included; longer texts are cut in front of the end.
        vocab_size: number of ids; of CLIP's, the two highest are the start and the end token.
        pad_id: id that fills the rest of the context.
        tokenizer: another tokenizer than CLIP's, from `mobileclip.data.read_text_input`.

    Examples:
        >>> TextInput().start_id, TextInput().end_id, TextInput().context_length
        (49406, 49407, 77)
    """

    context_length: int = attrs.field(default=77, validator=[validators.ge(3), validators.le(1 << 16)])
    vocab_size: int = attrs.field(default=49408, validator=[validators.gt(2), validators.le(MAX_VOCABULARY)])
    pad_id: int = attrs.field(default=0, validator=validators.ge(0))
    tokenizer: TokenizerFile | None = None

    def __attrs_post_init__(self) -> None:
        """Check that padding, start and end are among the ids."""
        named = {"pad_id": self.pad_id, "start_id": self.start_id, "end_id": self.end_id}
        for name, index in named.items():
            if index is not None and index >= self.vocab_size:
                raise ValueError(f"{name}={index} is none of the {self.vocab_size} ids of vocab_size")

    @property
    def start_id(self) -> int | None:
        """Id of the start-of-text token; None where the tokenizer has none."""
        return self.vocab_size - 2 if self.tokenizer is None else self.tokenizer.start_id

    @property
    def end_id(self) -> int:
        """Id of the end-of-text token; of CLIP's, the highest of all."""
        return self.vocab_size - 1 if self.tokenizer is None else self.tokenizer.end_id

    @property
    def pooled_id(self) -> int | None:
        """Id at whose first place towers pool; None for the highest id of a text, which CLIP's end token is."""
        return None if self.tokenizer is None else self.tokenizer.end_id
