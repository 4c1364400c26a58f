"""The library's own checkpoint layout: safetensors with its parameter names, and the spec in the header.

The spec is in every safetensors file that we write, under foreign names too: what else reads such a file leaves it
alone. A text contract with a tokenizer of its own has its `tokenizer.json` there too, compressed: one file is all there
is to copy, and the two cannot be mixed up.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import attrs
from torch import Tensor

from mobileclip.encoders.checkpoints.forms import Form
from mobileclip.encoders.checkpoints.layouts import ModelSpec, layouts
from mobileclip.encoders.classifier import ClassifierSpec
from mobileclip.encoders.dual import DualEncoderSpec
from mobileclip.encoders.families import ImageEncoderSpec, TextEncoderSpec
from mobileclip.extras import UPDATE
from mobileclip.inputs import MAX_TOKENIZER_BYTES, TokenizerFile
from mobileclip.serialization import from_json, to_json
from mobileclip.tensor_files import CheckpointError
from mobileclip.tensor_files.errors import shown

NAME = "mobileclip"

_RUN = "mobileclip training state"
_OF_RUN = ("average/", "objective/model.")

_TOKENIZER = "mobileclip.tokenizer"
COCA = "coca"
"""Kind of a captioner, which `load_coca` reads."""
SPACE = "mobileclip.space"
"""Key of a header: identity of the model whose space the embeddings are in, as JSON."""
NGRAMS = "mobileclip.ngrams"
"""A tensor beside the weights: what a text tower was taught, see `mobileclip.data.text.ngrams`."""
_KINDS: dict[str, type[Any]] = {
    "dual_encoder": DualEncoderSpec,
    "classifier": ClassifierSpec,
    "image_encoder": ImageEncoderSpec,
    "text_encoder": TextEncoderSpec,
}


@attrs.frozen(kw_only=True, eq=False)
class Taught:
    """Training provenance of a tower or model, stored with its weights and kept in the attribute `taught`.

    Args:
        space: identity of the model whose space its embeddings are in, as JSON, see `mobileclip.inference.space_of`;
            empty for a model that has its own, and where nothing says it.
        ngrams: of the texts, as `mobileclip.data.text.ngrams` packs them; None where nothing says it.
    """

    space: str = ""
    ngrams: Tensor | None = None


UNTAUGHT = Taught()
"""Of models with a space of their own."""


@attrs.frozen(kw_only=True)
class Header:
    """The header of a native checkpoint: spec, form, layout and embedding space.

    Args:
        spec: the model.
        form: the form its tensors are in.
        layout: what its tensors are called by.
        space: see `Taught`.
    """

    spec: ModelSpec
    form: Form
    layout: str = NAME
    space: str = ""

    def to_metadata(self) -> dict[str, str]:
        """Return the header as the texts that safetensors stores.

        Raises:
            CheckpointError: if the text of the model's tokenizer is not here.
        """
        header = {
            "mobileclip.kind": next(name for name, cls in _KINDS.items() if cls is read_back_as(self.spec)),
            "mobileclip.form": self.form,
            "mobileclip.spec": model_json(self.spec),
        }
        if self.layout != NAME:
            header["mobileclip.layout"] = self.layout
        if self.space:
            header[SPACE] = self.space
        tokenizer = tokenizer_of(self.spec)
        if tokenizer is not None:
            if tokenizer.content is None:
                raise CheckpointError(
                    f"the model's tokenizer {tokenizer.sha256[:12]} is known by name alone, and a checkpoint holds its "
                    "text; build the model from a contract that mobileclip.data.read_text_input read"
                )
            header[_TOKENIZER] = base64.b64encode(zlib.compress(tokenizer.content.encode(), 9)).decode("ascii")
        return header


def read_back_as(spec: Any) -> type[Any]:
    """Return the class that the JSON of a spec is read back as: of a tower the open family, of others their own."""
    return next((family for family in (ImageEncoderSpec, TextEncoderSpec) if isinstance(spec, family)), type(spec))


def is_known(spec: Any) -> bool:
    """Return whether a spec is of a model of this library: a subclass has more in it than is read back."""
    return read_back_as(spec) in _KINDS.values()


def model_json(spec: Any) -> str:
    """Return the spec of a model as JSON, as it is read back."""
    return to_json(spec, unstructure_as=read_back_as(spec))


def tokenizer_of(spec: ModelSpec) -> TokenizerFile | None:
    """Return the tokenizer of a model's texts, where it is not CLIP's."""
    text = spec.text if isinstance(spec, DualEncoderSpec) else spec
    return text.input.tokenizer if isinstance(text, TextEncoderSpec) else None


def of_run(tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the model in a step of a training run, its moving average where it keeps one; other files as they are."""
    if not metadata.get("format", "").startswith(_RUN) or "model" not in metadata:
        return tensors, metadata
    prefix = next((one for one in _OF_RUN if any(name.startswith(one) for name in tensors)), _OF_RUN[-1])
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    held = (("num_classes", "classifier"), ("decoder_depth", COCA), ("image", "dual_encoder"))
    kind = next((kind for key, kind in held if f'"{key}"' in metadata["model"]), "text_encoder")
    header = {"mobileclip.kind": kind, "mobileclip.form": "training", "mobileclip.spec": metadata["model"]}
    return own, header | {SPACE: metadata.get(SPACE, "")}


def header_of(metadata: Mapping[str, str], path: Path) -> Header | None:
    """Return the header in the metadata of the file at `path`, or None if we did not write it.

    Raises:
        CheckpointError: if there is one that this version cannot read.
    """
    if "mobileclip.spec" not in metadata:
        return None
    kind, form = metadata.get("mobileclip.kind", ""), metadata.get("mobileclip.form", "")
    layout = metadata.get("mobileclip.layout", NAME)
    if kind == COCA:
        raise CheckpointError(f"{path} holds a captioner; load it with mobileclip.encoders.checkpoints.load_coca")
    if kind not in _KINDS or form not in get_args(Form) or layout not in (NAME, *layouts):
        raise CheckpointError(
            f"{path} says that it holds a {shown(kind)} in the form {shown(form)} and the layout {shown(layout)}, "
            f"which this version of mobileclip does not know; it was written by another version, update with: {UPDATE}"
        )
    try:
        spec = cast("ModelSpec", from_json(metadata["mobileclip.spec"], _KINDS[kind]))
    except ValueError as error:
        raise CheckpointError(f"the spec in {path} cannot be read: {error}") from error
    if tokenizer_of(spec) is not None:
        try:
            spec = _with_tokenizer(spec, _inflated(metadata.get(_TOKENIZER)))
        except ValueError as error:
            raise CheckpointError(f"the tokenizer in {path} cannot be used: {error}") from None
    return Header(spec=spec, form=cast("Form", form), layout=layout, space=metadata.get(SPACE, ""))


def _inflated(stored: str | None) -> str:
    """Return the text of a `tokenizer.json` as a file holds it."""
    if stored is None:
        raise ValueError("the file holds none, and its model names one; it is damaged, fetch it again")
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(base64.b64decode(stored, validate=True), MAX_TOKENIZER_BYTES + 1)
        if len(data) > MAX_TOKENIZER_BYTES:
            raise ValueError(f"it has more than {MAX_TOKENIZER_BYTES:,} bytes")
        return data.decode("utf-8")
    except (zlib.error, binascii.Error, UnicodeDecodeError) as error:
        raise ValueError(f"it is damaged ({error}); fetch the file again") from None


def _with_tokenizer(spec: ModelSpec, content: str) -> ModelSpec:
    """Return a spec whose tokenizer has its text."""
    if isinstance(spec, DualEncoderSpec):
        return attrs.evolve(spec, text=cast("TextEncoderSpec", _with_tokenizer(spec.text, content)))
    assert isinstance(spec, TextEncoderSpec), "images have no tokenizer"
    assert spec.input.tokenizer is not None, "the caller has looked"
    tokenizer = attrs.evolve(spec.input.tokenizer, content=content)
    return attrs.evolve(spec, input=attrs.evolve(spec.input, tokenizer=tokenizer))
