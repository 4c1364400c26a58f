"""The interface of an export layout: names of files, inputs and outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs

from mobileclip.export.contract import Contract, ImageContract
from mobileclip.export.spec import ExportSpec, TextDtype, Tower
from mobileclip.hardware.precision import Precision
from mobileclip.inputs import HIDDEN
from mobileclip.registry import Registry
from mobileclip.terminal import get_logger

logger = get_logger(__name__)


@attrs.frozen(kw_only=True)
class TowerNames:
    """The file, input and output names of a tower in an export layout.

    Args:
        stem: its file, with folders, and without what the precision and the target add; `{model}` stands for the model.
        input: of the file.
        output: the first of the file.
    """

    stem: str
    input: str
    output: str


class Layout(Protocol):
    """A layout: names of files, inputs and outputs, and what lies beside them."""

    @property
    def names(self) -> Mapping[Tower, TowerNames]:
        """What each tower is called."""

    @property
    def endings(self) -> Mapping[Precision, str]:
        """What each precision adds to the stem of a file; others are not run there."""

    @property
    def tokenizer(self) -> str:
        """File of the tokenizer."""

    @property
    def text_dtype(self) -> TextDtype | None:
        """What token ids come in as; None where the target says so."""

    @property
    def cuts_end(self) -> bool:
        """Whether long texts are cut there without their end token, which the text file then puts behind them."""

    def fitted(self, spec: ExportSpec) -> ExportSpec:
        """Return how a model is exported for this place.

        Args:
            spec: what was asked for, of a precision that has an ending.

        Raises:
            ValueError: if the place does not run that; the message says what it runs.
        """

    def write(self, folder: Path, contract: Contract) -> None:
        """Write what the place reads beside towers and tokenizer.

        Args:
            folder: of the export, with towers and tokenizer.
            contract: of the export, which names its towers.
        """


layouts: Registry[Layout] = Registry("export_layout")
"""Layouts by name; third parties add theirs here or by an entry point in `mobileclip.export_layout`."""


def fitted(spec: ExportSpec) -> ExportSpec:
    """Return how a model is exported for the place that a layout is of.

    Args:
        spec: what was asked for.

    Raises:
        ValueError: if there is no such layout, or its place does not run that; the message says what it runs.
    """
    layout = layouts.resolve(spec.layout)
    for precision in spec.precisions:
        if precision not in layout.endings:
            raise ValueError(
                f"the layout {spec.layout!r} has no precision {precision}; choose --precision "
                f"{', '.join(layout.endings)}"
            )
    if len({layout.endings[one] for one in spec.precisions}) < len(spec.precisions):
        raise ValueError(
            f"the layout {spec.layout!r} calls files of all precisions alike; leave also out, or choose "
            "--layout transformers.js"
        )
    return layout.fitted(spec)


def require_onnx(spec: ExportSpec) -> None:
    """Refuse what a place that runs ONNX files on scaled and normalised pixels does not run.

    Args:
        spec: what was asked for.

    Raises:
        ValueError: if it is for another runtime, or wants other pixels.
    """
    if spec.target != "onnx":
        raise ValueError(f"the layout {spec.layout!r} is of ONNX files, not of {spec.target!r}; choose --target onnx")
    if spec.preprocess != "host":
        raise ValueError(
            f"the layout {spec.layout!r} is for a host that scales and normalises pixels, and "
            f"preprocess={spec.preprocess} is for one that does not; leave it out"
        )


def warn_of_background(image: ImageContract, host: str) -> None:
    """Say what a host does not know of a model's pictures."""
    if image.input.background != HIDDEN:
        logger.warning(
            "%s drops the transparency of pictures, and this model was trained with them on %s: put transparent ones "
            "on it before",
            host,
            image.input.background,
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{json.dumps(content, indent=2)}\n", encoding="utf-8")


def tokenizer_config(folder: Path, contract: Contract) -> dict[str, Any] | None:
    """Return what a `tokenizer_config.json` says, as far as hosts read it; None for an image tower alone.

    Args:
        folder: of the export, with its tokenizer.
        contract: of the export.
    """
    text = contract.text
    if text is None:
        return None
    whole = json.loads((folder / text.tokenizer).read_text(encoding="utf-8"))
    names = {entry["id"]: entry["content"] for entry in whole["added_tokens"]}
    return {
        "tokenizer_class": "CLIPTokenizer" if text.input.tokenizer is None else "PreTrainedTokenizerFast",
        "model_max_length": text.input.context_length,
        "pad_token": whole["padding"]["pad_token"],
        "bos_token": names.get(text.start_id),
        "eos_token": names.get(text.end_id),
        "unk_token": names.get(text.end_id),
    }
