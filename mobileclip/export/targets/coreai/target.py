"""Core AI: models for Apple's devices from version 27 of their systems on, as `.aimodel` folders."""

from __future__ import annotations

import contextlib
import io
import warnings
from importlib import import_module
from pathlib import Path

import attrs
from torch import Tensor

from mobileclip.export.contract import TowerFile
from mobileclip.export.spec import TextDtype
from mobileclip.export.targets.base import CPU, Format, Run, Written, device_called, refuse_threads
from mobileclip.export.targets.coreai.runtime import ENTRY, Function, require_entry
from mobileclip.export.targets.native_stderr import kept_stderr, text_of
from mobileclip.export.towers.graph import TowerExport
from mobileclip.extras import needed
from mobileclip.hardware.precision import Precision, dtype_of
from mobileclip.terminal.silence import SILENCING


@attrs.frozen
class CoreAITarget(Format):
    """Core AI from an exported program, by Apple's converter; run by Apple's runtime, on Linux as well as on Macs.

    float16 and bfloat16 are computed in as exported. Token ids are int32. The runtime compiles a model for the machine
    when it is opened.

    Source: github.com/apple/coreai-torch.
    """

    suffix: str = ".aimodel"
    libraries: tuple[str, ...] = ("coreai-core", "coreai-torch")
    text_dtype: TextDtype = "int32"
    precisions: tuple[Precision, ...] = ("float32", "float16", "bfloat16")
    runtime: str = "coreai"

    def check(self) -> None:
        """Make sure that everything is installed.

        Raises:
            ImportError: if something is missing; the message has the command that installs it.
        """
        wanted = needed("the target 'coreai', which wants Python 3.11 or newer,", "coreai")
        with SILENCING, wanted, warnings.catch_warnings():
            # That it was not tried with a newer PyTorch; exports are compared with their models all the same.
            warnings.simplefilter("ignore")
            for name in ("coreai.authoring", "coreai.runtime", "coreai_torch"):
                import_module(name)

    def export(self, tower: TowerExport, path: Path) -> Written:
        """Write one tower."""
        precision = tower.spec.precision
        from coreai_torch import TorchConverter, get_decomp_table

        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), kept_stderr():
            # PyTorch's own deprecations, and a bar of the converter.
            warnings.simplefilter("ignore")
            program = tower.program(dtype_of(precision)).run_decompositions(get_decomp_table())
            converter = TorchConverter().add_exported_program(
                program, input_names=[tower.input_name], output_names=tower.output_names, entrypoint_name=ENTRY
            )
            converter.to_coreai().save_asset(path)
        return Written(compute=precision)

    def open(self, path: Path, tower: TowerFile, *, device: str = CPU, num_threads: int | None = None) -> Run:
        """Return a function that runs a model with Core AI, which chooses by itself where on a Mac.

        Raises:
            ValueError: if it cannot be read.
        """
        device_called(device, {CPU: CPU}, self.runtime)
        refuse_threads(num_threads, "Core AI")
        with kept_stderr() as said:
            try:
                require_entry(path)
                function = Function(path)
            except (RuntimeError, KeyError) as error:
                raise ValueError(
                    f"{path} cannot be compiled by Core AI ({error}: {text_of(said)}); update it with: pip install -U "
                    "coreai-core coreai-torch, or export the model again"
                ) from error

        def run(inputs: Tensor) -> tuple[Tensor, ...]:
            return function({tower.input_name: inputs.contiguous()}, list(tower.outputs))

        return run
