"""Published and packaged weights by name and tag, and detection of exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from mobileclip import storage
from mobileclip.blocks import models
from mobileclip.registry import spelling
from mobileclip.strict import parse_json
from mobileclip.tensor_files import CheckpointError
from mobileclip.tensor_files.errors import shown

PREFIX = "hf-hub:"


@attrs.frozen(kw_only=True)
class Published:
    """A file on the Hugging Face hub.

    Args:
        repository: owner and name, such as `apple/MobileCLIP-S0`.
        file: path in the repository; None for the only checkpoint in the repository.
        revision: commit hash or branch; None for the newest commit.
        sha256: SHA-256 of the file, in hexadecimal; None if unknown.
        licence: the hub's identifier of the licence at `revision`: `apple-ascl` until February 2025, `apple-amlr` since
            then. Both licences allow research only.
    """

    repository: str
    file: str | None = None
    revision: str | None = None
    sha256: str | None = None
    licence: str = attrs.field(default="apple-amlr", eq=False)

    @property
    def address(self) -> str:
        """The file's `hf-hub:` address, which all checkpoint arguments accept."""
        file = f"/{self.file}" if self.file else ""
        revision = f"@{self.revision}" if self.revision else ""
        digest = f"#sha256={self.sha256}" if self.sha256 else ""
        return f"{PREFIX}{self.repository}{file}{revision}{digest}"


OPEN_CLIP = "open_clip_model.safetensors"
"""Name of open_clip's weights file, in safetensors; `_TORCH` is the older PyTorch file."""
_TORCH = "open_clip_pytorch_model.bin"

PUBLISHED = {
    "mobileclip_s0": Published(
        repository="apple/MobileCLIP-S0",
        file="mobileclip_s0.pt",
        revision="3d22d55fff32f091c79bf0f762198c72aa5b760f",
        sha256="809b408eff74f8058843e86a1f92967097d42ba782450e85b8f4867b7f0ca0b7",
        licence="apple-ascl",
    ),
    "mobileclip_s1": Published(
        repository="apple/MobileCLIP-S1",
        file="mobileclip_s1.pt",
        revision="d1d05c9debf62c1dcb9efbb065cf4f084194b94b",
        licence="apple-ascl",
    ),
    "mobileclip_s2": Published(
        repository="apple/MobileCLIP-S2",
        file="mobileclip_s2.pt",
        revision="22fec9d0b9b614cb270f3322bbb80bf98a3f9c2f",
        licence="apple-ascl",
    ),
    "mobileclip_b": Published(
        repository="apple/MobileCLIP-B",
        file="mobileclip_b.pt",
        revision="639b28ffd55dc4115135b063eb19b9679b046c13",
        sha256="0dd1d92c911841121a0a82af2db74941ffa78bc05d215334b95db030242ec7f9",
    ),
    "mobileclip_blt": Published(
        repository="apple/MobileCLIP-B-LT",
        file="mobileclip_blt.pt",
        revision="782103d99b5752ee20a4d9016f60d8ccd4a1c004",
        sha256="670844f7a886dd6eff7a9285adfc53f3d3c889c03bfc8354010cb5c6bf27441a",
        licence="apple-ascl",
    ),
    "mobileclip_s3": Published(repository="apple/MobileCLIP-S3", file="mobileclip_s3.pt"),
    "mobileclip_s4": Published(repository="apple/MobileCLIP-S4", file="mobileclip_s4.pt"),
    "mobileclip_l14": Published(repository="apple/MobileCLIP-L-14", file="mobileclip_l14.pt"),
    "mobileclip2_s0": Published(
        repository="timm/MobileCLIP2-S0-OpenCLIP",
        file=OPEN_CLIP,
        revision="095906d28bf54d7584dc411e8ffe448f34289e05",
        sha256="ab91a1a0c4330d6b1913e24d5035dfdea15423316aaec649610c6b1c6ddd0e95",
    ),
    "mobileclip2_s2": Published(
        repository="timm/MobileCLIP2-S2-OpenCLIP",
        file=OPEN_CLIP,
        revision="ac6b37c8fc40b62b623d09ed228a6f0c9bc29fe6",
    ),
    "mobileclip2_b": Published(repository="timm/MobileCLIP2-B-OpenCLIP", file=OPEN_CLIP),
    "mobileclip2_s3": Published(
        repository="timm/MobileCLIP2-S3-OpenCLIP",
        file=_TORCH,
        revision="a713b52a11767cbdbf4bd117213dd39d6e62a6a0",
        sha256="553b3394c826383d899beb7297b973947f588d7348e69bd6776cf8fb44209b76",
    ),
    "mobileclip2_s4": Published(
        repository="timm/MobileCLIP2-S4-OpenCLIP",
        file=_TORCH,
        sha256="f25c203a6c982e91e6f55da0427cc736594ea701e5afd62049cdae8d48223af2",
    ),
    "mobileclip2_l14": Published(repository="timm/MobileCLIP2-L-14-OpenCLIP", file=OPEN_CLIP),
}
"""Locations of the published weights on the hub, by model name. Apple's licence allows research only."""

_SPELLINGS = {
    spelling(called): name
    for name, published in PUBLISHED.items()
    for title in [published.repository.partition("/")[2].removesuffix("-OpenCLIP")]
    for called in (name, *(f"{owner}{title}{kind}" for owner in ("", "apple/", "timm/") for kind in ("", "-OpenCLIP")))
}
for _spelled, _name in _SPELLINGS.items():
    models.add_alias(_spelled, _name)


class _Addresses(Mapping[str, str]):
    """Addresses by name, in the spellings of the papers, open_clip and the hub; an existing path takes precedence."""

    def __getitem__(self, name: str) -> str:
        if name not in PUBLISHED and Path(name).exists():
            raise KeyError(name)
        return PUBLISHED[_SPELLINGS[spelling(name)]].address

    def __iter__(self) -> Iterator[str]:
        return iter(PUBLISHED)

    def __len__(self) -> int:
        return len(PUBLISHED)


PRETRAINED = _Addresses()
"""Addresses of the published weights by model name, for use as checkpoint arguments."""

_TIMM = ("vit_base_mci_224", "vit_large_patch14_clip_224", *(f"fastvit_mci{number}" for number in range(5)))
_TIMM_TOWERS = dict(zip(("b", "l14", "s0", "s1", "s2", "s3", "s4"), _TIMM, strict=True))


def with_timm_tower(name: str) -> str | None:
    """Return the published model with the timm image tower `name` (`fastvit_mci0.apple_mclip`); None if unknown."""
    tower, _, tag = name.rpartition("/")[2].partition(".")
    size = next((size for size, one in _TIMM_TOWERS.items() if one == tower), None)
    kinds = {"apple_mclip": f"mobileclip_{size}", "apple_mclip2_dfndr2b": f"mobileclip2_{size}"}
    found = "mobileclip_blt" if (tower, tag) == (_TIMM[0], "apple_mclip_lt") else kinds.get(tag)
    return found if found in PUBLISHED else None


TAGS = ("datacompdr", "datacompdr_lt", "dfndr2b")
"""open_clip's `pretrained` tags of the published weights."""


def tagged(model: str, tag: str) -> str:
    """Return the name of the published weights for open_clip's model name and tag.

    Args:
        model: registered name of the model.
        tag: one of `TAGS`.

    Raises:
        ValueError: if the model has no published weights with this tag; the message lists the model's tags.
    """
    known = {"dfndr2b" if model.startswith("mobileclip2_") else "datacompdr": model} if model in PUBLISHED else {}
    if model in ("mobileclip_b", "mobileclip_blt"):  # the two share one architecture and one open_clip name
        known = {"datacompdr": "mobileclip_b", "datacompdr_lt": "mobileclip_blt"}
    if tag not in known:
        raise ValueError(
            f"{model} has no published weights with the tag {tag!r}; its tags are: {', '.join(known) or 'none'}"
        )
    return known[tag]


_FOLDER = Path(__file__).with_name("packaged")

PACKAGED = dict.fromkeys(("icons", "icons-multilingual"), _FOLDER / "icons.safetensors")
"""Models in the package, usable as checkpoints by name. The card of each model is next to its file, as `NAME.md`."""

COMPANIONS = {"icons-multilingual": _FOLDER / "icons-multilingual.safetensors"}
"""Files of the second text towers of packaged models, by model name.

Such a model encodes each text with one of its two text towers.
"""


def packaged(name: str | Path) -> Path | None:
    """Return the file of a packaged model by its name; None for other arguments.

    A bare name means the model, even if a folder of images has the same name; write `./icons`, `icons/` or a `Path` for
    the folder. A file with the bare name takes precedence over the model.
    """
    if Path(name).is_file() or (isinstance(name, Path) and name.exists()):
        return None
    return PACKAGED.get(str(name))


def companion(name: str | Path, *, of_file: bool = False) -> Path | None:
    """Return the second text tower of a packaged model by its name; None if the model has one text tower.

    Args:
        name: name of the packaged model; `packaged` describes name clashes.
        of_file: whether to accept the second text tower of another packaged model with the same file.
    """
    file = packaged(name)
    found = (tower for one, tower in COMPANIONS.items() if one == str(name) or (of_file and PACKAGED[one] == file))
    return None if file is None else next(found, None)


_LICENCE = "code MIT; Apple's published weights are for research only ({}), reinforced data CC-BY-NC-ND"
_PACKAGED_LICENCE = "code and weights MIT; the model's card names the authors of the training drawings and texts"
_OTHER = "other"
_OTHERS_LICENCE = "code MIT; the weights have the licence that their authors chose"


def licence_of(checkpoint: str | Path) -> str:
    """Return the licence of a checkpoint, from its name.

    Args:
        checkpoint: an address in `PRETRAINED`, the name of a packaged model, or any other checkpoint.
    """
    if packaged(checkpoint) is not None:
        return _PACKAGED_LICENCE
    licence = hub_licence_of(checkpoint)
    return _OTHERS_LICENCE if licence == _OTHER else _LICENCE.format(licence)


def hub_licence_of(checkpoint: str | Path) -> str:
    """Return the hub's identifier of a checkpoint's licence; `other` if unknown."""
    if packaged(checkpoint) is not None:
        return "mit"
    return next((one.licence for one in PUBLISHED.values() if one.address == str(checkpoint)), _OTHER)


def of_same_architecture(name: str) -> tuple[str, ...]:
    """Return the published models with the architecture of a model that has no published weights."""
    spec = models.get(name)
    return tuple(other for other in PUBLISHED if spec is not None and models.get(other) == spec)


def unpublished(name: str | None) -> str:
    """Return the error message for a model without published weights; None stands for an unnamed model."""
    alike = of_same_architecture(name) if name else ()
    instead = (
        f"{' and '.join(alike)} {'have' if len(alike) > 1 else 'has'} the same architecture, with published weights: "
        f"use {alike[0]}"
        if alike
        else f"models with published weights: {', '.join(PUBLISHED)}; in the package: {', '.join(PACKAGED)}"
    )
    return (
        f"there are no published weights for {repr(name) if name else 'this model'}; {instead}, or pass your own "
        "checkpoint (checkpoint=... in Python, -m NAME=FILE for a command); for randomly initialised weights use "
        "mobileclip.build_model"
    )


CONTRACT = "mobileclip.json"
"""File that marks a folder as an export."""

RUNTIMES = {
    "coreml": "Core ML",
    "executorch": "ExecuTorch",
    "litert": "LiteRT",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch": "PyTorch's `torch.export`",
}
"""Display names of the runtimes, by export target."""

_MOST_BYTES = 1 << 24


def is_export(place: str | Path) -> bool:
    """Return whether a local folder holds an export."""
    return packaged(place) is None and (Path(place) / CONTRACT).is_file()


def require_no_export(folder: Path) -> None:
    """Raise if a folder holds an export instead of a checkpoint.

    Raises:
        CheckpointError: if the folder is an export; the message names the export's target and runtime, and a remedy.
    """
    if is_export(folder):
        place = storage.printable(folder)
        raise no_checkpoint(place, folder / CONTRACT, f"`mobileclip verify {place}` runs it")


def no_checkpoint(place: str, contract: Path, run: str) -> CheckpointError:
    """Return the error for an export that was passed in place of a checkpoint.

    Args:
        place: the export's path, as the user wrote it.
        contract: path of the export's contract on this machine.
        run: clause for the error message that says how to run the export.
    """
    return CheckpointError(
        f"{place} is an export{_target(contract)}, not a checkpoint; {run}. To load the model, pass the checkpoint "
        "that the model was exported from",
        code="export",
    )


def _target(path: Path) -> str:
    """Return a contract's target; empty for a damaged contract, which `mobileclip verify` reports."""
    try:
        contract = parse_json(storage.read_bytes(path, limit=_MOST_BYTES))
    except (OSError, ValueError):
        return ""
    target = contract.get("target") if isinstance(contract, dict) else None
    if not isinstance(target, str):
        return ""
    runtime = RUNTIMES.get(target)
    return f" for the target {shown(target)}" + ("" if runtime is None else f", which {runtime} runs")
