"""Defines the flags that several commands share, and checks paths and numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import attrs
from tyro.conf import arg

from mobileclip import storage
from mobileclip.registry import nearest_file
from mobileclip.storage import require_output
from mobileclip.terminal import say
from mobileclip.terminal.common import Rare

if TYPE_CHECKING:
    from mobileclip.data.skips import Skip
    from mobileclip.engines import Engine

DEFAULT_MODEL = "mobileclip_s0"
Device = Annotated[str, arg(metavar="auto|cuda|mps|cpu")]
Workers = arg(metavar="PROCESSES")
TextModel = Annotated[str | None, arg(metavar="FILE|FOLDER")]
_T = TypeVar("_T")


def require_exists(path: str | Path, expected: str) -> None:
    """Raise if a local path does not exist; do not check URLs.

    Args:
        path: a file, a folder, or a URL.
        expected: description of the expected file, for the message.

    Raises:
        ValueError: if the path is empty.
        FileNotFoundError: if the path does not exist; the message suggests similar names.
    """
    if not str(path).strip():
        raise ValueError(f"the name is empty; expected {expected}")
    if storage.is_remote(path) or storage.local_path(path).exists():
        return
    near = nearest_file(storage.local_path(path))
    raise FileNotFoundError(f"there is no {storage.printable(path)}; expected {expected}{near}")


def require_folder(path: str | Path, expected: str) -> None:
    """Raise if a local folder does not exist; do not check URLs.

    Args:
        path: a folder, or a URL.
        expected: description of the expected folder, for the message.

    Raises:
        ValueError: if the path is empty.
        OSError: if the path does not exist or is not a folder.
    """
    require_exists(path, expected)
    if not storage.is_remote(path) and not storage.local_path(path).is_dir():
        raise NotADirectoryError(f"{path} is a file; expected {expected}")


def require_file(path: str | Path, expected: str) -> None:
    """Raise if a local file does not exist; do not check URLs.

    Args:
        path: a file, or a URL.
        expected: description of the expected file, for the message.

    Raises:
        ValueError: if the path is empty, or is a pipe or a device.
        OSError: if the path does not exist or is a folder.
    """
    require_exists(path, expected)
    if storage.is_remote(path) or storage.local_path(path).is_file():
        return
    if storage.local_path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected {expected}")
    raise ValueError(f"{path} is a pipe or a device, which may never end; expected {expected}")


def require_checkpoint(source: str) -> None:
    """Raise if a local checkpoint (a file, or a folder with a checkpoint) does not exist; do not check the hub.

    Args:
        source: a file, a folder, or `hf-hub:owner/name`.

    Raises:
        OSError: if the file or folder does not exist.
        ValueError: if the folder has no weights file, or several weights files.
    """
    from mobileclip.encoders.checkpoints import PREFIX, packaged
    from mobileclip.encoders.checkpoints.hub import local_checkpoint
    from mobileclip.encoders.checkpoints.loading import source_of

    if not source.startswith(PREFIX) and source_of(source) is None and packaged(source) is None:
        expected = "a checkpoint, a folder with a checkpoint, or hf-hub:OWNER/NAME"
        require_exists(source, expected)
        require_file(local_checkpoint(source), expected)


def require_at_least(least: int, **numbers: float | None) -> None:
    """Check that numbers are not below a minimum.

    Args:
        least: minimum of each number.
        numbers: values by flag name, with underscores; None for a missing flag.

    Raises:
        ValueError: if a number is below the minimum.
    """
    for name, number in numbers.items():
        if number is not None and number < least:
            raise ValueError(f"--{name.replace('_', '-')} is {number}, expected at least {least}")


def without_repeats(paths: Iterable[Path]) -> list[Path]:
    """Return the unique paths, in order."""
    return list(dict.fromkeys(paths))


def outputs(given: Sequence[Path], *kinds: Collection[str], overwrite: bool) -> list[Path | None]:
    """Return the output file of each kind, or None for a kind without a file; check that each file can be written.

    Args:
        given: the values of `--output`.
        kinds: file name extensions of each kind, such as `.html`; empty for any extension.
        overwrite: whether to replace existing files.

    Raises:
        ValueError, OSError: if a file has an unknown suffix, two files have the same kind, or a file cannot be written.
    """
    found: list[Path | None] = [None] * len(kinds)
    for path in given:
        place = next((at for at, kind in enumerate(kinds) if not kind or path.suffix.lower() in kind), None)
        if place is None:
            suffixes = " or ".join(suffix for kind in kinds for suffix in kind)
            raise ValueError(f"{path} cannot be written: the name must end with {suffixes}")
        if found[place] is not None:
            raise ValueError(f"--output is {found[place]} and {path}, two files of the same kind; give only one")
        require_output(path, overwrite=overwrite)
        found[place] = path
    return found


def require_page(path: Path | None, *, overwrite: bool) -> None:
    """Raise early if a page cannot be written.

    Args:
        path: path of the page; None for no page.
        overwrite: whether to replace an existing file.

    Raises:
        ValueError, OSError: if the name does not end with `.html`, or the page cannot be written.
    """
    if path is not None:
        require_output(path, overwrite=overwrite, suffixes=(".html",))


@attrs.frozen(kw_only=True)
class ModelFlags:
    """Flags that choose a command's model and its device.

    Args:
        model: a name, a checkpoint in any known layout, a folder with a checkpoint or an export, hf-hub:OWNER/NAME,
            open_clip:MODEL/TAG, transformers:OWNER/NAME, or NAME=FILE for a file that does not state its model. For
            a bare name, the command downloads the published weights once. The default is mobileclip_s0, or the stored
            model of an existing index.
        image_size: side of the input images in pixels, instead of the model's default; a ViT then interpolates its
            position embeddings.
        context_length: number of token ids per text, at most the model's default; see load_model in
            mobileclip.encoders.
        device: cuda, cuda:1, mps or cpu; auto takes the first available device. An export needs cpu, or a device
            of the export's runtime.
        trust: open an export from another machine in a runtime that does not validate files (all targets except ONNX).
            The author of the file can then run any code on this machine. An index does not store this flag.
    """

    model: Annotated[str | None, arg(metavar="NAME|FILE|NAME=FILE")] = None
    image_size: Rare[int | None] = None
    context_length: Rare[int | None] = None
    device: Device = "auto"
    trust: Rare[bool] = False

    def named(self) -> tuple[str | None, str | None]:
        """Return the name and the file in `--model` (a name, a file or NAME=FILE); None for a missing part."""
        from mobileclip.encoders.checkpoints import packaged
        from mobileclip.inference.loading import holds_weights

        if self.model is None:
            return None, None
        name, file = split(self.model)
        is_file = file is None and holds_weights(name) and packaged(name) is None
        return (None, name) if is_file else (name, file)

    def load(self, load: Callable[..., _T]) -> _T:
        """Check that the model exists, and return the result of a loading function.

        Args:
            load: a function like `mobileclip.load`, called with the values of the flags.

        Raises:
            ValueError, FileNotFoundError: if the model or the device does not exist.
        """
        from mobileclip.inference.loading import device_for, require_model

        name, file = self.named()
        name = name or (None if file else DEFAULT_MODEL)
        place = device_for(name, file, self.device)
        require_model(name, file)
        sizes = {"image_size": self.image_size, "context_length": self.context_length}
        return load(name, file, device=place, trust=self.trust, **sizes)


def split(text: str) -> tuple[str, str | None]:
    """Split NAME=FILE into name and file; return other texts with None."""
    name, _, file = text.partition("=")
    is_path = any(mark in name for mark in ("/", os.sep, ":")) or Path(text).exists()
    return (text, None) if is_path or not (name and file) else (name, file)


def report_skipped(skipped: Sequence[str], num_images: int, *, called: str = "images") -> None:
    """Print the first hundred skipped images with their reasons, on standard error.

    Args:
        skipped: a message per skipped image.
        num_images: total number of images.
        called: noun for the images in the printed text.
    """
    if skipped:
        say(f"left out {len(skipped):,} of {num_images:,} {called}:", error=True)
        say_first(skipped, most=100)


def say_first(lines: Sequence[str], *, most: int = 10) -> None:
    """Print the first lines on standard error, and the number of further lines."""
    others = [f"and {len(lines) - most:,} others"] if len(lines) > most else []
    for line in (*lines[:most], *others):
        say(f"  {line}", error=True)


def report_left_out(skips: Sequence[Skip]) -> None:
    """Print the number of skipped files of folders, by reason and kind of file, on standard error."""
    from mobileclip.data.images.files import describe_left_out

    if skips:
        say(f"left out {len(skips):,} files of the folders:", error=True)
        for line in describe_left_out(skips):
            say(f"  {line}", error=True)


@attrs.frozen(kw_only=True)
class Sharing:
    """Flags that divide a command's work among processes or the machines of a cluster.

    Args:
        num_workers: number of processes, or maximum number of Ray actors; the number does not affect the result.
        engine: local for processes on this machine, ray for a cluster; all machines of the cluster need the same paths.
        ray_address: address of the Ray cluster to join, such as auto; by default, Ray starts a cluster on this machine.
        shard_seconds: maximum seconds without progress on a shard; with several processes, a new process then replaces
            the stuck process.
        tries: maximum number of attempts per shard, if the storage or the process fails.
        pause_seconds: seconds to wait before the second attempt.
        pause_growth: factor by which the pause grows before each further attempt.
    """

    num_workers: Annotated[int, Workers] = 1
    engine: Literal["local", "ray"] = "local"
    ray_address: Rare[str | None] = None
    shard_seconds: Rare[float] = 3600.0
    tries: Rare[int] = 3
    pause_seconds: Rare[float] = 10.0
    pause_growth: Rare[float] = 4.0

    def build(self) -> Engine:
        """Return the engine.

        Raises:
            ValueError: if a number is out of range.
        """
        from mobileclip.engines import LocalEngine, RayEngine, Retries

        require_at_least(1, num_workers=self.num_workers)
        retries = Retries(tries=self.tries, pause_seconds=self.pause_seconds, pause_growth=self.pause_growth)
        if self.engine == "ray":
            return RayEngine(
                address=self.ray_address,
                max_workers=self.num_workers,
                progress_seconds=self.shard_seconds,
                retries=retries,
            )
        return LocalEngine(
            num_workers=self.num_workers, devices=("cpu",), progress_seconds=self.shard_seconds, retries=retries
        )
