"""Loads an export that is trusted as a model: its files encode in their own runtime."""

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
from mobileclip.inference.openvino import OneAtATime
from mobileclip.inputs import ImageInput
from mobileclip.machine import raise_machine_fault
from mobileclip.serialization import from_json
from mobileclip.storage import printable
from mobileclip.tensor_files import file_sha256
from mobileclip.tensor_files.weights import weights_sha256
from mobileclip.terminal import get_logger


@attrs.frozen(kw_only=True)
class Opening:
    """The arguments that open a tower's exported file, kept so that an unpickled model can open it again.

    Args:
        folder: of the export.
        contract: of it.
        file: the tower's.
        target: what runs it.
        device: where its runtime computes.
        num_threads: see `load_export`.
    """

    folder: Path
    contract: Contract
    file: TowerFile
    target: Target
    device: str
    num_threads: int | None

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of the tower's file, and of each that lies beside it under its name."""
        stem = self.file.file.partition(".")[0]
        return {name: digest for name, digest in self.contract.files.items() if name.startswith(f"{stem}.")}

    def opened(self) -> Run:
        """Return what runs the file, for any number of threads.

        Raises:
            ValueError: if the runtime cannot take it.
        """
        run = self.target.open(
            self.folder / self.file.file, self.file, device=self.device, num_threads=self.num_threads
        )
        return run if self.target.concurrent else OneAtATime(run)

    def open_again(self) -> Run:
        """Return what runs the file, if that is still the one that was opened.

        Raises:
            ImportError: if the runtime is not installed.
            ValueError: if it has changed, or as `opened`.
        """
        for name, digest in self.digests.items():
            check_file(self.folder, name, digest)
        self.target.check()
        return self.opened()


class ExportedTower(PreparedTower):
    """A tower whose embeddings an exported file gives, on the processor or what `device` of its runtime says.

    Any number of threads may call it. It can be pickled: where it is unpickled, its file is opened again.

    Shape:
        images `(batch, 3, size, size)`, scaled and normalised as the model's transform does, or ids
        `(batch, context_length)`, to `(batch, embedding_dim)`, float32 on the CPU. Padding of ids is cut off as far as
        the file has lengths for it.

    Args:
        spec: of the tower that was exported.
        opening: of its file.

    Raises:
        ValueError: if the file cannot be opened, the inputs are not what the tower takes, or the runtime fails.
    """

    files_sha256: Tensor

    def __init__(self, spec: ImageEncoderSpec | TextEncoderSpec, *, opening: Opening) -> None:
        super().__init__()
        self._spec = spec
        self._opening = opening
        self._run = opening.opened()
        # What tells this model from every other, where its weights would be.
        self.register_buffer("files_sha256", _digest(opening))
        self.eval()

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the runtime's own, which belongs to this process."""
        return {name: value for name, value in vars(self).items() if name != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `__getstate__` left, and open the file."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._run = self._opening.open_again()

    @property
    def spec(self) -> ImageEncoderSpec | TextEncoderSpec:
        """The spec of the tower that was exported."""
        return self._spec

    @property
    def takes_pixels(self) -> bool:
        """Whether the file scales and normalises by itself; pixels may then come in place of images."""
        image = self._opening.contract.image
        return isinstance(self._spec, ImageEncoderSpec) and image is not None and image.preprocess != "host"

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the embeddings; of unit length where the contract says that they come out so."""
        return self._output(inputs, 0)

    def _output(self, inputs: Tensor, place: int) -> Tensor:
        """Return one of the outputs of the file."""
        file = self._opening.file
        most = file.input_shape[0] or EXAMPLE_BATCH
        taken = torch.split(self._taken(inputs), most)
        try:
            parts = [self._run(self._cut(part).contiguous())[place] for part in taken]
        except Exception as error:
            raise_machine_fault(error)
            # The runtimes' errors have no base in common.
            raise ValueError(
                f"the runtime of {self._opening.folder / file.file} failed ({type(error).__name__}: "
                f"{printable(error)}); the file was whole when it was opened: look at the memory and the device that "
                "are left, and ask again, or load the export anew"
            ) from error
        return torch.cat(parts).float()

    def _cut(self, part: Tensor) -> Tensor:
        """Return a batch without padding that the file need not see; graphics and neural units want one shape."""
        lengths = self._opening.file.lengths if self._opening.device == CPU else ()
        text = self._opening.contract.text
        return part if text is None else cut_to_length(part, lengths, text.input)

    def _taken(self, inputs: Tensor) -> Tensor:
        """Return inputs as the file takes them."""
        inputs = inputs.detach().cpu()
        if isinstance(self._spec, TextEncoderSpec):
            check_tokens(inputs, self._spec.input)
            return inputs.to(getattr(torch, self._opening.file.input_dtype))
        check_images(inputs, self._spec.input)
        image = self._opening.contract.image
        assert image is not None, "an image tower has a contract of its images"
        if image.preprocess == "host":
            return inputs.float()
        pixels = inputs if inputs.dtype == torch.uint8 else as_pixels(inputs.float(), self._spec.input)
        return pixels if self._opening.file.input_dtype == "uint8" else pixels.float()


class LocalExportedTower(ExportedTower):
    """An exported image tower whose file gives the embedding of each place too."""

    def local_embeddings(self, images: Tensor) -> Tensor:
        """Return `(batch, embedding_dim, rows, columns)`, whose mean over rows and columns is the embedding."""
        stages = [one.stage for one in self._opening.file.features]
        return self._output(images, 1 + stages.index(TEXT_SPACE))


def as_pixels(images: Tensor, contract: ImageInput) -> Tensor:
    """Return the pixels that were scaled and normalised to these images.

    Shape:
        `(batch, 3, size, size)`, float32 -> the same, uint8.

    Args:
        images: as the model takes them.
        contract: the mean and the standard deviation that they were normalised with.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (contract.mean, contract.std))
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


@openers.register("export")
def load_export(
    folder: str | Path, *, device: str = "cpu", num_threads: int | None = None, trust: bool = False
) -> DualEncoder:
    """Return an export of both towers as a dual encoder.

    Embeddings come out of unit length where the contract says so (`normalize`), and then whether they are asked for as
    such or not.

    Args:
        folder: that `export_model` wrote; every file is checked against its contract first.
        device: where its runtime computes: `cpu`, or what the runtime has beside it on this machine, such as `cuda`,
            `tensorrt`, `coreml` or `qnn` of ONNX Runtime, and `gpu` or `npu` of OpenVINO.
        num_threads: of the processor that its runtime computes with; as many as PyTorch has by default. ExecuTorch has
            one number a process; Core ML on a Mac chooses by itself and takes none.
        trust: whether to open an export that may run code here: files of other targets than ONNX, whose runtimes
            do not validate files, are run then too. What this machine wrote needs none, nor does what lies in the
            folder that the environment names as `MOBILECLIP_TRUST`.

    Raises:
        ImportError: if the runtime is not installed; the message has the command that installs it.
        ValueError: if the export is not whole, holds one tower or a classifier, may not be run without trust, or the
            runtime has no such device here.
    """
    # A link to it may point elsewhere by the time that a file is opened.
    folder = Path(folder).resolve()
    contract = read_contract(folder)
    spec = _spec_of(contract, folder)
    target = runnable_target(folder, contract, trust=trust)

    def opening(file: TowerFile) -> Opening:
        return Opening(
            folder=folder, contract=contract, file=file, target=target, device=device, num_threads=num_threads
        )

    openings = {file.tower: opening(file) for file in contract.towers}
    is_local = any(one.stage == TEXT_SPACE for one in openings["image"].file.features)
    model = ReadyDualEncoder(
        (LocalExportedTower if is_local else ExportedTower)(spec.image, opening=openings["image"]),
        ExportedTower(spec.text, opening=openings["text"]),
        max_logit_scale=spec.max_logit_scale,
    )
    assert contract.logit_scale is not None, "an export of both towers has a logit scale"
    with torch.no_grad():
        model.logit_scale.fill_(math.log(contract.logit_scale))
    return model.eval().requires_grad_(requires_grad=False)


def runnable_target(folder: Path, contract: Contract, *, trust: bool) -> Target:
    """Return what runs an export, once it is known that it may and can.

    Args:
        folder: for the message.
        contract: of the export.
        trust: see `load_export`.

    Raises:
        ImportError: if the runtime is not installed; the message has the command that installs it.
        ValueError: if it may not be run without trust, or a library is older than the one that wrote the export.
    """
    target = targets.resolve(contract.target)
    if not (target.vouched or trust or is_believed(folder)):
        raise ValueError(
            f"{folder} was written elsewhere, for {contract.target}, whose runtime does not validate files: whoever "
            "made it could run anything here. If you trust them, give --trust (trust=True in Python), or name a folder "
            f"that it lies in as {TRUSTED}; else export the model again on this machine, or ask for an export for onnx"
        )
    target.check()
    check_versions(target.libraries, contract.versions)
    return target


def require_made_of(folder: str | Path, checkpoint: str | Path) -> None:
    """Refuse a checkpoint that an export was not made of.

    Args:
        folder: the export.
        checkpoint: a file in any known layout, a folder with one, `hf-hub:owner/name`, or the name of a model with
            published weights.

    Raises:
        ValueError: if its folded weights are others.
    """
    contract = read_contract(folder)
    name = str(checkpoint)
    model = load_model(PRETRAINED.get(name, name), name if name in PRETRAINED else None)
    if weights_sha256(model.state_dict()) != contract.weights_sha256:
        raise ValueError(
            f"{folder} was not made of {checkpoint}, whose folded weights are others; give the checkpoint that it was "
            "exported from"
        )


def _spec_of(contract: Contract, folder: Path) -> DualEncoderSpec:
    """Return the spec of both towers, with the inputs that the contract states.

    Raises:
        ValueError: if the export is of something else.
    """
    if contract.of_classes:
        raise ValueError(
            f"{folder} is an export of a classifier, and this needs an image-text model; `mobileclip verify` runs it"
        )
    kinds = {file.tower for file in contract.towers}
    if kinds != {"image", "text"} or contract.logit_scale is None:
        raise ValueError(
            f"{folder} holds the {' and the '.join(sorted(kinds))} tower alone, and this needs both; export the model "
            "without --tower"
        )
    spec = from_json(json.dumps(contract.spec), DualEncoderSpec)
    assert contract.image is not None, "an image tower has a contract of its images"
    assert contract.text is not None, "a text tower has a contract of its texts"
    if (spec.image.input, spec.text.input) != (contract.image.input, contract.text.input):
        raise ValueError(
            f"the contract of {folder} says other inputs than its spec; it is damaged: export the model again"
        )
    if spec.text.input.tokenizer is None:
        return spec
    # A contract knows a tokenizer of the model's own by its hash; the export has its text.
    own = read_text_input(folder / contract.text.tokenizer, context_length=spec.text.input.context_length)
    text_input = attrs.evolve(spec.text.input, tokenizer=own.tokenizer)
    return attrs.evolve(spec, text=attrs.evolve(spec.text, input=text_input))


def _digest(opening: Opening) -> Tensor:
    parts = sorted(opening.digests.items())
    whole = hashlib.sha256(repr((opening.contract.target, opening.file.compute, parts)).encode()).digest()
    return torch.tensor(list(whole), dtype=torch.uint8)


TRUSTED = "MOBILECLIP_TRUST"
"""Variable of the environment with a folder whose exports are believed, for deployments."""

_REGISTER = "exports.txt"
_DIGEST = re.compile(r"[0-9a-f]{64}")
# A line each, the last ones: more than anybody writes, and read in no time.
_MOST, _MOST_BYTES = 20_000, 2**21
_WAIT_SECONDS = 10.0
_logger = get_logger(__name__)


def remember_export(folder: Path) -> None:
    """Take note of an export that was written just now; where that cannot be, `--trust` is needed for it.

    Args:
        folder: of the export.
    """
    place = storage.state_folder()
    if place is None:
        _logger.warning("there is no home folder to remember in that this machine wrote %s", folder)
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        digest = file_sha256(folder / CONTRACT)
        with storage.exclusive(place, wait_seconds=_WAIT_SECONDS):
            known = [one for one in _known(place) if one != digest]
            with storage.atomic_path(place / _REGISTER) as temporary:
                temporary.write_text("".join(f"{one}\n" for one in [*known[1 - _MOST :], digest]), encoding="ascii")
    except OSError as error:
        _logger.warning("that this machine wrote %s cannot be remembered (%s)", folder, error)


def is_believed(folder: Path) -> bool:
    """Return whether an export needs no `--trust`.

    Args:
        folder: of the export.

    Raises:
        ValueError: if what the environment names is no absolute path.
    """
    named = os.environ.get(TRUSTED, "")
    if named and not Path(named).is_absolute():
        raise ValueError(f"{TRUSTED} is {named!r}, expected the absolute path of a folder with exports that you trust")
    if named and folder.resolve().is_relative_to(Path(named).resolve()):
        return True
    return is_written_here(folder)


def is_written_here(folder: Path) -> bool:
    """Return whether this machine's user wrote an export: its contract, which has the SHA-256 of each file, is theirs.

    Args:
        folder: of the export.
    """
    place = storage.state_folder()
    if place is None:
        return False
    try:
        return file_sha256(folder / CONTRACT) in _known(place)
    except OSError:
        return False


def _known(place: Path) -> list[str]:
    data = storage.read_if_there(place / _REGISTER, limit=_MOST_BYTES)
    return _DIGEST.findall(data.decode("ascii", errors="replace")) if data else []
