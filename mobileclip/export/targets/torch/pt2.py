"""Exported programs, read so that nothing in a file is run: all of it is known before PyTorch sees any of it."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from mobileclip.export.targets.bounds import Bounds
from mobileclip.export.targets.pt2e import quiet
from mobileclip.export.targets.torch.pt2_archive import Member, read_members
from mobileclip.export.targets.torch.pt2_schema import check_program, check_weights
from mobileclip.machine import raise_machine_fault
from mobileclip.storage import printable

_OPERATIONS = "torch.ao.quantization.fx._decomposed"
_PROGRAM, _MOST_TEXT, _MOST_SAID = "models/model.json", 2**26, 100
_TABLES = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
# What the small members say, and that there are no example inputs, which would be a pickle.
_SAYS = {
    "archive_format": rb"pt2",
    "archive_version": rb"0",
    "byteorder": rb"little",
    ".data/version": rb"\d{1,4}\n?",
    ".data/serialization_id": rb"[0-9a-f]{1,64}",
    "data/sample_inputs/model.pt": rb"",
}
_NEEDED = ("archive_format", "archive_version", "data/sample_inputs/model.pt", _PROGRAM, *_TABLES)
_NUMBERS = re.compile(r"data/weights/weight_\d{1,6}|data/constants/tensor_\d{1,6}")


def register_operations() -> None:
    """Let PyTorch know the operations that round, which are its own, and which files of int8 are made of."""
    with quiet():
        import_module(_OPERATIONS)


def check_pt2(path: Path) -> None:
    """Check that a file is an exported program of known parts: plain numbers, and a graph of known operations.

    Such a file runs nothing when PyTorch reads it.

    Raises:
        ValueError: if anything in it is not known to be harmless.
    """
    with path.open("rb") as stream:
        _check(stream, path)


def load_pt2(path: Path, *, believed: bool = False) -> torch.export.ExportedProgram:
    """Return the program of a file that `check_pt2` lets through; both see the same bytes.

    Args:
        path: of the file.
        believed: whether it is loaded as it is, so that it may run what its author likes.

    Raises:
        ValueError: if it is refused, or PyTorch cannot read it.
    """
    register_operations()
    with path.open("rb") as stream:
        if not believed:
            _check(stream, path)
            stream.seek(0)
        try:
            with quiet():
                program = torch.export.load(stream)
        except Exception as error:
            raise_machine_fault(error)
            # Whatever a damaged file, or a newer format, makes PyTorch raise.
            raise ValueError(
                f"{path} cannot be read by PyTorch {torch.__version__} ({type(error).__name__}: {printable(error)}); "
                "update PyTorch, or export the model again"
            ) from error
    _check_numbers(program, path)
    return program


def _check_numbers(program: torch.export.ExportedProgram, path: Path) -> None:
    """Refuse weights of another type or shape than the program takes, which operations find out only when they run."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names |= signature.inputs_to_lifted_tensor_constants
    held = {**program.constants, **program.state_dict}
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in names:
            continue
        found, taken = held.get(names[node.name]), node.meta.get("val")
        if (
            not isinstance(found, Tensor)
            or not isinstance(taken, Tensor)
            or (found.dtype, found.shape) != (taken.dtype, taken.shape)
        ):
            raise ValueError(
                f"{path}: the weight {printable(names[node.name])} is missing, or of another type or shape than the "
                "program takes; export the model again"
            )


def check_cost(module: nn.Module, inputs: Tensor, path: Path) -> None:
    """Check what one run of a program takes, by a run without numbers.

    Args:
        module: of the program.
        inputs: a batch.
        path: of its file, for the message.

    Raises:
        ValueError: if it cannot be run, or takes more memory or time than any tower.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    assert isinstance(module, torch.fx.GraphModule)
    counter, bounds = FlopCounterMode(display=False), Bounds(path)
    with quiet(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), counter:
        try:
            _Sizes(module, bounds).run(torch.empty(inputs.shape, dtype=inputs.dtype))
        except Exception as error:
            raise_machine_fault(error)
            # Whatever PyTorch makes of operations and shapes that do not fit.
            raise ValueError(f"{path} cannot be run: {printable(error)}; export the model again") from error
    bounds.add("its output", 0, counter.get_total_flops())


class _Sizes(torch.fx.Interpreter):
    """Runs a graph, and adds up the values in it."""

    def __init__(self, module: torch.fx.GraphModule, bounds: Bounds) -> None:
        super().__init__(module)
        self._bounds = bounds

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        for value in result if isinstance(result, (tuple, list)) else (result,):
            self._bounds.add(n.name, value.numel() if isinstance(value, Tensor) else 0)
        return result


def _check(stream: IO[bytes], path: Path) -> None:
    try:
        _check_parts(stream, read_members(stream))
    except ValueError as error:
        raise ValueError(
            f"{path} is no exported program that is known to run nothing when it is read: {error}; do not use it "
            "unless you made it, and then export the model again"
        ) from error


def _check_parts(stream: IO[bytes], members: dict[str, Member]) -> None:
    for name, member in members.items():
        _check_member(stream, name, member)
    if missing := set(_NEEDED) - members.keys():
        raise ValueError(f"it holds no {min(missing)}")
    check_program(_text_of(stream, members[_PROGRAM]))
    for table in _TABLES:
        folder = f"{table.rpartition('/')[0]}/"
        inside = {name.removeprefix(folder): member for name, member in members.items() if name.startswith(folder)}
        stored = {name: member.num_bytes for name, member in inside.items() if f"{folder}{name}" != table}
        check_weights(_text_of(stream, members[table]), stored)


def _check_member(stream: IO[bytes], name: str, member: Member) -> None:
    if name in _SAYS:
        if not re.fullmatch(_SAYS[name], _bytes_of(stream, member, most=_MOST_SAID)):
            raise ValueError(f"{name} is not what PyTorch writes there")
    elif name not in (_PROGRAM, *_TABLES) and not _NUMBERS.fullmatch(name):
        raise ValueError(f"it holds {printable(name)}, which is more than numbers and a graph")


def _text_of(stream: IO[bytes], member: Member) -> str:
    # PyTorch takes it for UTF-8 too; JSON may be more.
    return _bytes_of(stream, member, most=_MOST_TEXT).decode("utf-8")


def _bytes_of(stream: IO[bytes], member: Member, *, most: int) -> bytes:
    if member.num_bytes > most:
        raise ValueError(f"one of its texts has {member.num_bytes:,} bytes, and up to {most:,} are known here")
    stream.seek(member.start)
    return stream.read(member.num_bytes)
