"""Our own layout: safetensors under our own names, with the spec inside, so that a file says what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import attrs

from mobileclip.encoders.checkpoints.forms import Form
from mobileclip.encoders.checkpoints.layouts import ModelSpec
from mobileclip.encoders.dual import DualEncoderSpec
from mobileclip.encoders.families import ImageEncoderSpec, TextEncoderSpec
from mobileclip.serialization import from_json, to_json
from mobileclip.tensor_files import CheckpointError
from mobileclip.tensor_files.errors import shown

NAME = "mobileclip"

_KINDS: dict[str, type[Any]] = {
    "dual_encoder": DualEncoderSpec,
    "image_encoder": ImageEncoderSpec,
    "text_encoder": TextEncoderSpec,
}


@attrs.frozen(kw_only=True)
class Header:
    """What a checkpoint of ours says of itself.

    Args:
        spec: the model.
        form: the form its tensors are in.
    """

    spec: ModelSpec
    form: Form

    def to_metadata(self) -> dict[str, str]:
        """Return the header as the texts that safetensors stores."""
        kind = next(name for name, cls in _KINDS.items() if isinstance(self.spec, cls))
        return {
            "mobileclip.kind": kind,
            "mobileclip.form": self.form,
            "mobileclip.spec": to_json(self.spec, unstructure_as=_KINDS[kind]),
        }


def header_of(metadata: Mapping[str, str], path: Path) -> Header | None:
    """Return the header in the metadata of the file at `path`, or None if the file is not of our layout.

    Raises:
        CheckpointError: if there is one that this version cannot read.
    """
    if "mobileclip.spec" not in metadata:
        return None
    kind, form = metadata.get("mobileclip.kind", ""), metadata.get("mobileclip.form", "")
    if kind not in _KINDS or form not in get_args(Form):
        raise CheckpointError(
            f"{path} says that it holds a {shown(kind)} in the form {shown(form)}, which this version of "
            "mobileclip does not know; it was written by another version, update with: pip install -U mobileclip"
        )
    try:
        spec = cast("ModelSpec", from_json(metadata["mobileclip.spec"], _KINDS[kind]))
    except ValueError as error:
        raise CheckpointError(f"the spec in {path} cannot be read: {error}") from error
    return Header(spec=spec, form=cast("Form", form))
