"""Loads a trusted export as a dual encoder that runs the exported files in their own runtime."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from mobileclip import storage
from mobileclip.data.text.tokenizer_file import read_text_input
from mobileclip.encoders import DualEncoder, DualEncoderSpec, ImageEncoderSpec, TextEncoderSpec, load_model
from mobileclip.encoders.checkpoints import PRETRAINED
from mobileclip.encoders.checkpoints.published import CONTRACT
from mobileclip.encoders.towers import check_images, check_tokens
from mobileclip.export.contract import Contract, TowerFile, check_file, read_contract
from mobileclip.export.spec import TEXT_SPACE
from mobileclip.export.targets import Target, targets
from mobileclip.export.targets.base import CPU, EXAMPLE_BATCH, Run, check_versions
from mobileclip.export.towers import cut_to_length
from mobileclip.inference.forms import PreparedTower, ReadyDualEncoder
from mobileclip.inference.loading import openers
from mobileclip.inference.openvino_backend import LockedFunction
from mobileclip.inputs import ImageInput
from mobileclip.machine import raise_machine_fault
from mobileclip.serialization import from_json
from mobileclip.storage import printable
from mobileclip.tensor_files import file_sha256
from mobileclip.tensor_files.weights import weights_sha256
from mobileclip.terminal import get_logger


@attrs.frozen(kw_only=True)
class OpenArguments:
    """The arguments for opening a tower's exported file, stored so that an unpickled model can open the file again.

    Args:
        folder: folder of the export.
        contract: contract of the export.
        file: entry of the tower's file in the contract.
        target: target that runs the file.
        device: device of the runtime, such as `cpu`.
        num_threads: number of CPU threads of the runtime, see `load_export`.
    """

    folder: Path
    contract: Contract
    file: TowerFile
    target: Target
    device: str
    num_threads: int | None

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of the tower's file and of all files with the same stem, by name."""
        stem = self.file.file.partition(".")[0]
        return {name: digest for name, digest in self.contract.files.items() if name.startswith(f"{stem}.")}

    def opened(self) -> Run:
        """Return a function that runs the file and is safe to call from several threads.

        Raises:
            ValueError: if the runtime cannot open the file.
        """
        run = self.target.open(
            self.folder / self.file.file, self.file, device=self.device, num_threads=self.num_threads
        )
        return run if self.target.concurrent else LockedFunction(run)

    def open_again(self) -> Run:
        """Return a function that runs the file, after a check that the file has not changed since the export.

        Raises:
            ImportError: if the runtime is not installed.
            ValueError: if the file has changed, or the runtime cannot open the file.
        """
        for name, digest in self.digests.items():
            check_file(self.folder, name, digest)
        self.target.check()
        return self.opened()


class ExportedTower(PreparedTower):
    """A tower that runs an exported file, on the CPU or on another `device` of its runtime.

    Any number of threads may call the tower. The tower can be pickled: unpickling opens the file again.

    Shape:
        The input is images `(batch, 3, size, size)`, scaled and normalised by the model's transform, or ids `(batch,
        context_length)`. The output is `(batch, embedding_dim)`, always float32 in CPU memory. If the runtime runs on
        the CPU, the tower first truncates ids to the shortest accepted row length that holds all texts.

    Args:
        spec: spec of the exported tower.
        opening: arguments that open the tower's file.

    Raises:
        ValueError: if the file cannot be opened, the inputs do not match the tower, or the runtime fails.
    """

    files_sha256: Tensor

    def __init__(self, spec: ImageEncoderSpec | TextEncoderSpec, *, opening: OpenArguments) -> None:
        super().__init__()
        self._spec = spec
        self._opening = opening
        self._run = opening.opened()
        # A hash that identifies this model, in place of its weights.
        self.register_buffer("files_sha256", _digest(opening))
        self.eval()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the runtime's objects, which belong to this process."""
        return {name: value for name, value in vars(self).items() if name != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state from `__getstate__`, and open the file."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._run = self._opening.open_again()

    @property
    def spec(self) -> ImageEncoderSpec | TextEncoderSpec:
        """The spec of the exported tower."""
        return self._spec

    @property
    def takes_pixels(self) -> bool:
        """Whether the file itself scales and normalises, so that it also accepts uint8 pixels."""
        image = self._opening.contract.image
        return isinstance(self._spec, ImageEncoderSpec) and image is not None and image.preprocess != "host"

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the embeddings, of unit length if the export normalises (`normalize` in the contract)."""
        return self._output(inputs, 0)

    def _output(self, inputs: Tensor, place: int) -> Tensor:
        """Run the file on all inputs, batch by batch, and return the output with the index `place`."""
        file = self._opening.file
        most = file.input_shape[0] or EXAMPLE_BATCH
        taken = torch.split(self._taken(inputs), most)
        try:
            parts = [self._run(self._cut(part).contiguous())[place] for part in taken]
        except Exception as error:
            raise_machine_fault(error)
            # The errors of the runtimes have no common base class.
            raise ValueError(
                f"the runtime of {self._opening.folder / file.file} failed ({type(error).__name__}: "
                f"{printable(error)}); the file was intact when it was opened; check the free memory and the "
                "device and try again, or load the export again"
            ) from error
        return torch.cat(parts).float()

    def _cut(self, part: Tensor) -> Tensor:
        """Return a batch of ids without unnecessary padding, or with the full length for GPUs and NPUs."""
        lengths = self._opening.file.lengths if self._opening.device == CPU else ()
        text = self._opening.contract.text
        return part if text is None else cut_to_length(part, lengths, text.input)

    def _taken(self, inputs: Tensor) -> Tensor:
        """Check the inputs, and convert them to the format and dtype that the file expects."""
        inputs = inputs.detach().cpu()
        if isinstance(self._spec, TextEncoderSpec):
            check_tokens(inputs, self._spec.input)
            return inputs.to(getattr(torch, self._opening.file.input_dtype))
        check_images(inputs, self._spec.input)
        image = self._opening.contract.image
        assert image is not None, "expected an image contract for an image tower"
        if image.preprocess == "host":
            return inputs.float()
        pixels = inputs if inputs.dtype == torch.uint8 else as_pixels(inputs.float(), self._spec.input)
        return pixels if self._opening.file.input_dtype == "uint8" else pixels.float()


class LocalExportedTower(ExportedTower):
    """An exported image tower whose file also returns the embedding of each image position."""

    def local_embeddings(self, images: Tensor) -> Tensor:
        """Return `(batch, embedding_dim, rows, columns)`; the mean over rows and columns is the image embedding."""
        stages = [one.stage for one in self._opening.file.features]
        return self._output(images, 1 + stages.index(TEXT_SPACE))


def as_pixels(images: Tensor, contract: ImageInput) -> Tensor:
    """Invert the scaling and normalisation of images, and return their pixels.

    Shape:
        `(batch, 3, size, size)`, float32 -> the same, uint8.

    Args:
        images: scaled and normalised images.
        contract: image input with the mean and the standard deviation of the normalisation.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (contract.mean, contract.std))
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


@openers.register("export")
def load_export(
    folder: str | Path, *, device: str = "cpu", num_threads: int | None = None, trust: bool = False
) -> DualEncoder:
    """Open an export of both towers as a dual encoder.

    If the export normalises (`normalize` in the contract), the embeddings always have unit length, even if the caller
    asks for embeddings without normalisation.

    Args:
        folder: folder that `export_model` wrote; the function first checks every file against the contract.
        device: device of the runtime: `cpu`, or another device that the runtime supports on this machine, such as
            `cuda`, `tensorrt`, `coreml` or `qnn` for ONNX Runtime, and `gpu` or `npu` for OpenVINO.
        num_threads: number of CPU threads of the runtime; by default the number that PyTorch uses. All ExecuTorch
            programs in a process share one number. Core ML chooses the number itself, and accepts only None.
        trust: whether to open an export that could run code on this machine: an export for any target except ONNX could
            do so, because the other runtimes do not validate files. Exports that this machine wrote, and exports in the
            folder named by the environment variable `MOBILECLIP_TRUST`, do not need `trust`.

    Raises:
        ImportError: if the runtime is not installed; the message gives the install command.
        ValueError: if the export is incomplete, has only one tower or is a classifier, if the export needs trust, or if
            the runtime does not have the device on this machine.
    """
    # A symbolic link could point to another folder by the time that a file is opened.
    folder = Path(folder).resolve()
    contract = read_contract(folder)
    spec = _spec_of(contract, folder)
    target = runnable_target(folder, contract, trust=trust)

    def opening(file: TowerFile) -> OpenArguments:
        return OpenArguments(
            folder=folder, contract=contract, file=file, target=target, device=device, num_threads=num_threads
        )

    openings = {file.tower: opening(file) for file in contract.towers}
    is_local = any(one.stage == TEXT_SPACE for one in openings["image"].file.features)
    model = ReadyDualEncoder(
        (LocalExportedTower if is_local else ExportedTower)(spec.image, opening=openings["image"]),
        ExportedTower(spec.text, opening=openings["text"]),
        max_logit_scale=spec.max_logit_scale,
    )
    assert contract.logit_scale is not None, "expected a logit scale in an export of both towers"
    with torch.no_grad():
        model.logit_scale.fill_(math.log(contract.logit_scale))
    return model.eval().requires_grad_(requires_grad=False)


def runnable_target(folder: Path, contract: Contract, *, trust: bool) -> Target:
    """Return the target that runs an export, after a check that the export is trusted and the runtime is installed.

    Args:
        folder: folder of the export, for the message.
        contract: contract of the export.
        trust: whether to accept an export from another machine for a target other than ONNX, see `load_export`.

    Raises:
        ImportError: if the runtime is not installed; the message gives the install command.
        ValueError: if the export needs trust, or a library is older than the one that wrote the export.
    """
    target = targets.resolve(contract.target)
    if not (target.validates_files or trust or is_trusted(folder)):
        raise ValueError(
            f"{folder} was written on another machine, for {contract.target}. The runtime does not validate files, so "
            "the export could run any code on this machine. If you trust the author, pass --trust (trust=True in "
            f"Python), or set {TRUSTED} to a folder that contains the export; otherwise export the model again on "
            "this machine, or for onnx"
        )
    target.check()
    check_versions(target.libraries, contract.versions)
    return target


def require_exported_from(folder: str | Path, checkpoint: str | Path) -> None:
    """Raise an error if an export was not made from a checkpoint.

    Args:
        folder: folder of the export.
        checkpoint: a file in any known layout, a folder with such a file, `hf-hub:owner/name`, or the name of a model
            with published weights.

    Raises:
        ValueError: if the folded weights of the checkpoint and of the export differ.
    """
    contract = read_contract(folder)
    name = str(checkpoint)
    model = load_model(PRETRAINED.get(name, name), name if name in PRETRAINED else None)
    if weights_sha256(model.state_dict()) != contract.weights_sha256:
        raise ValueError(
            f"{folder} was not made from {checkpoint}: the folded weights differ; pass the checkpoint that the model "
            "was exported from"
        )


def _spec_of(contract: Contract, folder: Path) -> DualEncoderSpec:
    """Return the spec of the dual encoder in a contract.

    Raises:
        ValueError: if the exported model is not an image-text model with both towers, or the contract is damaged.
    """
    if contract.of_classes:
        raise ValueError(
            f"{folder} is an export of a classifier, expected an image-text model; `mobileclip verify` runs classifiers"
        )
    kinds = {file.tower for file in contract.towers}
    if kinds != {"image", "text"} or contract.logit_scale is None:
        raise ValueError(
            f"{folder} contains only the {' and the '.join(sorted(kinds))} tower, expected both towers; export the "
            "model without --tower"
        )
    spec = from_json(json.dumps(contract.spec), DualEncoderSpec)
    assert contract.image is not None, "expected an image contract for an image tower"
    assert contract.text is not None, "expected a text contract for a text tower"
    if (spec.image.input, spec.text.input) != (contract.image.input, contract.text.input):
        raise ValueError(
            f"the contract of {folder} is damaged: the inputs differ from those of the model spec; export the model "
            "again"
        )
    if spec.text.input.tokenizer is None:
        return spec
    # For a model with its own tokenizer, the contract has only the hash; the export has the tokenizer file.
    own = read_text_input(folder / contract.text.tokenizer, context_length=spec.text.input.context_length)
    text_input = attrs.evolve(spec.text.input, tokenizer=own.tokenizer)
    return attrs.evolve(spec, text=attrs.evolve(spec.text, input=text_input))


def _digest(opening: OpenArguments) -> Tensor:
    parts = sorted(opening.digests.items())
    whole = hashlib.sha256(repr((opening.contract.target, opening.file.compute, parts)).encode()).digest()
    return torch.tensor(list(whole), dtype=torch.uint8)


TRUSTED = "MOBILECLIP_TRUST"
"""Environment variable with the path of a folder; `load_export` trusts all exports in this folder."""

_REGISTER = "exports.txt"
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Maximum size of the register, which has one line per export: far more than anyone writes, yet quick to read.
_MOST, _MOST_BYTES = 20_000, 2**21
_WAIT_SECONDS = 10.0
_logger = get_logger(__name__)


def remember_export(folder: Path) -> None:
    """Record that this machine wrote an export, so that opening the export needs no `--trust`; warn if recording fails.

    Args:
        folder: folder of the export.
    """
    place = storage.state_folder()
    if place is None:
        _logger.warning(
            "there is no home folder to record that this machine wrote %s; unless the target is onnx, opening the "
            "export needs --trust",
            folder,
        )
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        digest = file_sha256(folder / CONTRACT)
        with storage.exclusive(place, wait_seconds=_WAIT_SECONDS):
            known = [one for one in _known(place) if one != digest]
            with storage.atomic_path(place / _REGISTER) as temporary:
                temporary.write_text("".join(f"{one}\n" for one in [*known[1 - _MOST :], digest]), encoding="ascii")
    except OSError as error:
        _logger.warning(
            "cannot record that this machine wrote %s (%s); unless the target is onnx, opening the export needs "
            "--trust",
            folder,
            error,
        )


def is_trusted(folder: Path) -> bool:
    """Return whether an export can be opened without `--trust`.

    Args:
        folder: folder of the export.

    Raises:
        ValueError: if the environment variable `MOBILECLIP_TRUST` is not an absolute path.
    """
    named = os.environ.get(TRUSTED, "")
    if named and not Path(named).is_absolute():
        raise ValueError(f"{TRUSTED} is {named!r}, expected the absolute path of a folder with exports that you trust")
    if named and folder.resolve().is_relative_to(Path(named).resolve()):
        return True
    return was_written_here(folder)


def was_written_here(folder: Path) -> bool:
    """Return whether the record of this user on this machine has the SHA-256 of an export's contract.

    Args:
        folder: folder of the export.
    """
    place = storage.state_folder()
    if place is None:
        return False
    try:
        return file_sha256(folder / CONTRACT) in _known(place)
    except OSError:
        return False


def _known(place: Path) -> list[str]:
    data = storage.read_if_exists(place / _REGISTER, limit=_MOST_BYTES)
    return _DIGEST.findall(data.decode("ascii", errors="replace")) if data else []
