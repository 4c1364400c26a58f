"""LiteRT: models for Android, and for whatever else runs `.tflite` files."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from mobileclip.export.contract import TowerFile
from mobileclip.export.spec import ExportSpec, TextDtype
from mobileclip.export.targets.base import CPU, Format, Run, Written, device_called
from mobileclip.export.targets.litert.convert import CONVERTER, converted, converter_version
from mobileclip.export.targets.litert.file import SIGNATURE, signature_of, with_float_ends, with_notes
from mobileclip.export.targets.litert.weights import with_quantised_weights
from mobileclip.export.targets.native_stderr import kept_stderr, text_of
from mobileclip.export.towers.graph import TowerExport
from mobileclip.extras import needed
from mobileclip.hardware.precision import Precision
from mobileclip.hardware.threads import threads_or_default


@attrs.frozen
class LiteRTTarget(Format):
    """LiteRT from an exported program, by Google's converter, with XNNPACK's kernels on the processor.

    The converter runs in an environment of its own, which the spec names. Files take one input at a time; token ids are
    int32. A causal text tower has a signature for each length of rows beside `serving_default`: `length_8` and so on.

    Source: github.com/google-ai-edge/litert-torch.
    """

    suffix: str = ".tflite"
    libraries: tuple[str, ...] = ("ai-edge-litert", "ai-edge-quantizer")
    text_dtype: TextDtype = "int32"
    precisions: tuple[Precision, ...] = ("float32", "float16", "int8", "int8-weights")
    cuts_texts: bool = True
    runtime: str = "litert"

    def check(self) -> None:
        """Make sure that everything is installed but for the converter, which is elsewhere.

        Raises:
            ImportError: if something is missing; the message has the command that installs it.
        """
        with needed("the target 'litert'", "litert"):
            for name in ("ai_edge_litert.interpreter", "ai_edge_quantizer.quantizer"):
                import_module(name)

    def elsewhere(self, spec: ExportSpec) -> dict[str, str]:
        """Return the version of the converter.

        Raises:
            ValueError: if there is none where the spec says, or the batch is to be dynamic.
        """
        if spec.dynamic_batch:
            raise ValueError(
                "the target 'litert' takes one input at a time: its converter fixes the batch; leave dynamic-batch out"
            )
        return {CONVERTER: converter_version(spec.converter)}

    def export(self, tower: TowerExport, path: Path) -> Written:
        """Write one tower.

        Raises:
            ValueError: if the converter fails.
        """
        precision, model = tower.spec.precision, converted(tower)
        if precision == "int8":
            model = with_float_ends(model)
        if precision != "float32":
            model = with_quantised_weights(model, tower)
        path.write_bytes(with_notes(model, tower.notes))
        return Written(compute="int8" if precision == "int8" else "float32")

    def open(self, path: Path, tower: TowerFile, *, device: str = CPU, num_threads: int | None = None) -> Run:
        """Return a function that runs a file with LiteRT on the processor.

        Raises:
            ValueError: if it cannot be read.
        """
        device_called(device, {CPU: CPU}, self.runtime)
        names = {length: signature_of(length) for length in tower.lengths[:-1]}
        functions = _load(path, [SIGNATURE, *names.values()], threads_or_default(num_threads))

        def run(inputs: Tensor) -> tuple[Tensor, ...]:
            function = functions[names.get(inputs.shape[1], SIGNATURE)]
            found = function(**{tower.input_name: inputs.numpy()})
            return tuple(torch.from_numpy(found[name]) for name in tower.outputs)

        return run


def _load(path: Path, names: Sequence[str], num_threads: int) -> dict[str, Any]:
    """Return functions of a file by name; it is read whole, so that it may be replaced meanwhile."""
    from ai_edge_litert.interpreter import Interpreter

    with kept_stderr() as said:
        try:
            interpreter = Interpreter(model_content=path.read_bytes(), num_threads=num_threads)
            interpreter.allocate_tensors()
            return {name: interpreter.get_signature_runner(name) for name in names}
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read by LiteRT ({error}: {text_of(said)}); update it with: pip install -U "
                "ai-edge-litert, or export the model again"
            ) from error
