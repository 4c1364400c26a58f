"""torch.export's own format: an exported program, for PyTorch without this library and for further lowering."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import attrs
import torch
from torch import Tensor

from mobileclip.export.contract import TowerFile
from mobileclip.export.graph import TowerExport
from mobileclip.export.spec import Precision, TextDtype
from mobileclip.export.targets.base import Run
from mobileclip.export.targets.torch_int8 import quantized_program, register_operations

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TABLES = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_EXAMPLES = "data/sample_inputs/model.pt"
_PLAIN = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|models/model\.json|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)"
)


@attrs.frozen
class TorchTarget:
    """`torch.export.save` and `torch.export.load`; int8 is static, see `torch_int8`.

    torchao writes int8, and is not needed to load and run it. PyTorch runs it as it is, on values that are rounded to
    int8 and multiplied in float32; torch.compile finds its kernels of int8 in it.
    """

    suffix: str = ".pt2"
    libraries: tuple[str, ...] = ("torch",)
    text_dtype: TextDtype = "int64"
    prefers_depthwise: bool = True
    runtime: str = "torch"

    def check(self) -> None:
        """Make sure that everything is installed: PyTorch is."""

    def export(self, tower: TowerExport, path: Path) -> Precision:
        """Write one tower, computing in its precision.

        Raises:
            ImportError: if int8 is asked for, and what it needs is not installed.
        """
        precision = tower.spec.precision
        program = quantized_program(tower) if precision == "int8" else tower.program(_DTYPES[precision])
        # An example input would be stored as a pickle, and is of no use to anyone.
        program.example_inputs = None
        torch.export.save(program, path)
        return precision

    def inspect(self, path: Path, tower: TowerFile) -> None:
        """Check a file without running it.

        Raises:
            ValueError: if it is no archive of an exported program, holds a pickle, or is not what the contract says.
        """
        refuse_pickles(path)
        program = _load(path)
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        inputs = [node for node in placeholders if node.name in program.graph_signature.user_inputs]
        if len(inputs) != 1:
            raise ValueError(f"{path} takes {len(inputs)} inputs, expected one; export the model again")
        value = inputs[0].meta["val"]
        shape = tuple(side if isinstance(side, int) else None for side in value.shape)
        dtype = str(value.dtype).removeprefix("torch.")
        if (shape, dtype) != (tower.input_shape, tower.input_dtype):
            raise ValueError(
                f"{path} takes {dtype} of shape {shape}, and the contract says {tower.input_dtype} of shape "
                f"{tower.input_shape}; export the model again"
            )
        for name, tensor in program.state_dict.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ValueError(f"{path}: the weight {name!r} holds NaN or infinity; choose a wider precision")

    def open(self, path: Path, tower: TowerFile) -> Run:
        """Return a function that runs a file with PyTorch."""
        del tower
        refuse_pickles(path)
        module = _load(path).module()

        @torch.no_grad()
        def run(inputs: Tensor) -> Tensor:
            embeddings: Tensor = module(inputs)
            return embeddings

        return run


def refuse_pickles(path: Path) -> None:
    """Refuse an archive with anything in it that PyTorch would unpickle, and by that run.

    Raises:
        ValueError: if there is such a member, or the file is no archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # Below the folder that is named after the file.
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            unknown = [name for name, info in members.items() if not _is_plain(name, info.file_size)]
            tables = [json.loads(archive.read(members[name]))["config"] for name in _TABLES]
            pickled = [name for table in tables for name, entry in table.items() if entry["use_pickle"] is not False]
    except (zipfile.BadZipFile, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no archive of an exported program: {error}; export the model again") from error
    if unknown or pickled:
        raise ValueError(
            f"{path} holds {', '.join([*unknown, *pickled][:3])}, which is more than numbers and a graph and could run "
            "anything when it is read; do not use it"
        )


def _is_plain(name: str, size: int) -> bool:
    """Return whether a member of an archive is the graph, numbers, or a table of them."""
    # Example inputs are pickles, and the file is empty where there are none.
    return bool(_PLAIN.fullmatch(name)) or name in _TABLES or (name == _EXAMPLES and size == 0)


def _load(path: Path) -> torch.export.ExportedProgram:
    register_operations()
    try:
        return torch.export.load(path)
    except Exception as error:
        # Whatever a damaged file, or a newer format, makes PyTorch raise.
        raise ValueError(
            f"{path} cannot be read by PyTorch {torch.__version__} ({type(error).__name__}: {error}); "
            "update PyTorch, or export the model again"
        ) from error
