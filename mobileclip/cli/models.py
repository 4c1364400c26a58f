"""What names a model on the command line, and `mobileclip convert | list | info | check-weights`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import attrs
from tyro.conf import Positional, arg

from mobileclip.cli.checks import require_checkpoint, require_file
from mobileclip.storage import is_same, require_output
from mobileclip.terminal import print_table, say, say_json

if TYPE_CHECKING:
    from mobileclip.data.skips import Skip

_MOST_NAMED = 100

DEFAULT_MODEL = "mobileclip_s0"

Device = Annotated[str, arg(metavar="auto|cuda|mps|cpu")]
BatchSize = int
Workers = arg(metavar="PROCESSES")
TextModel = Annotated[str | None, arg(metavar="FILE|FOLDER")]

_T = TypeVar("_T")


@attrs.frozen(kw_only=True)
class ModelFlags:
    """Flags that choose a command's model and the device that it runs on.

    Args:
        model: a name, a checkpoint in any known layout, a folder with one or with an export, hf-hub:OWNER/NAME,
            open_clip:MODEL/TAG, transformers:OWNER/NAME, or NAME=FILE where a file does not say what it holds. Of a
            name alone, the published weights are fetched from the hub, once. mobileclip_s0 by default; an index keeps
            the model that it was made with.
        image_size: side of the images, where not the model's own; a ViT's positions are interpolated.
        context_length: ids per text, where fewer than the model's own; see load_model in mobileclip.encoders.
        device: where to compute: cuda, cuda:1, mps or cpu; auto takes the first of these that is there. Of an export:
            cpu, or what its runtime has here.
        trust: run an export of another target than ONNX that another machine wrote, whose runtime does not validate
            files: its author could then run anything on this machine. An index does not remember it.
    """

    model: Annotated[str | None, arg(metavar="NAME|FILE|NAME=FILE")] = None
    image_size: int | None = None
    context_length: int | None = None
    device: Device = "auto"
    trust: bool = False

    def named(self) -> tuple[str | None, str | None]:
        """Return the name of the model and its file, as far as they are given: `--model` takes either, or NAME=FILE."""
        from mobileclip.encoders.checkpoints import packaged
        from mobileclip.inference.loading import holds_weights

        if self.model is None:
            return None, None
        name, file = split(self.model)
        is_file = file is None and holds_weights(name) and packaged(name) is None
        return (None, name) if is_file else (name, file)

    def load(self, load: Callable[..., _T]) -> _T:
        """Return the model as a function loads it, having made sure that there is one.

        Args:
            load: one of `mobileclip.inference.loading`.

        Raises:
            ValueError, FileNotFoundError: if there is no such model, or no such device.
        """
        from mobileclip.inference.loading import device_for, require_model

        name, file = self.named()
        name = name or (None if file else DEFAULT_MODEL)
        place = device_for(name, file, self.device)
        require_model(name, file)
        sizes = {"image_size": self.image_size, "context_length": self.context_length}
        return load(name, file, device=place, trust=self.trust, **sizes)


def split(text: str) -> tuple[str, str | None]:
    """Return the name of a model and its file, where NAME=FILE is given; otherwise the text, and no file."""
    name, _, file = text.partition("=")
    is_path = any(mark in name for mark in ("/", os.sep, ":")) or Path(text).exists()
    return (text, None) if is_path or not (name and file) else (name, file)


def report_skipped(skipped: Sequence[str], num_images: int, *, called: str = "images") -> None:
    """Name the pictures that were left out, the first hundred of them, and say why.

    Args:
        skipped: why each was, naming it.
        num_images: of all.
        called: what they are.
    """
    if skipped:
        say(f"left out {len(skipped):,} of {num_images:,} {called}:", error=True)
        for reason in skipped[:_MOST_NAMED]:
            say(f"  {reason}", error=True)
        if len(skipped) > _MOST_NAMED:
            say(f"  and {len(skipped) - _MOST_NAMED:,} others", error=True)


def report_left_out(skips: Sequence[Skip]) -> None:
    """Count what was left out of folders, by the reason and the kind of file."""
    from mobileclip.data.images.files import describe_left_out

    if skips:
        say(f"left out {len(skips):,} files of the folders:", error=True)
        for line in describe_left_out(skips):
            say(f"  {line}", error=True)


def convert(
    source: Annotated[Positional[str], arg(metavar="FILE|NAME=FILE")],
    /,
    *,
    output: Annotated[Path, arg(metavar="FILE")],
    to: Literal["mobileclip", "official", "open_clip", "timm"] = "mobileclip",
    tower: Literal["image", "text"] | None = None,
    fold: bool = False,
    image_size: int | None = None,
    context_length: int | None = None,
    precision: Literal["float32", "float16", "bfloat16"] = "float32",
    overwrite: bool = False,
) -> None:
    """Write a checkpoint in another layout, whole or one tower of it, every tensor accounted for.

    mobileclip convert mobileclip_s2.pt -o s2.safetensors --fold

    A model that is written so stays in the space of the one that it was made of, and its towers alone too: the file
    names it, and text towers that were distilled from one work beside the others.

    Args:
        source: a checkpoint in any known layout, a folder with one, hf-hub:OWNER/NAME, or a model of another package;
            with NAME= before it where it does not say what it holds.
        output: the file to write; mobileclip's own layout is *.safetensors.
        to: the layout: mobileclip's own, the research release's, open_clip's, or timm's, which has no text towers.
        tower: write this tower alone.
        fold: fold branches, norms and scales for inference; the result can no longer be trained.
        image_size: side of the images, where not the model's own; a ViT's positions are interpolated.
        context_length: ids per text, where fewer than the model's own; see load_model in mobileclip.encoders.
        precision: precision of the weights; folding happens before the cast.
        overwrite: replace a file that is there.
    """
    import torch

    from mobileclip.encoders import save_model
    from mobileclip.encoders.checkpoints import PREFIX, read_checkpoint, resolve_spec
    from mobileclip.encoders.checkpoints.hub import local_checkpoint
    from mobileclip.encoders.checkpoints.loading import source_of
    from mobileclip.inference.loading import CHECKPOINT_SUFFIXES
    from mobileclip.inference.text_towers import converted_from
    from mobileclip.reparam import reparameterize

    suffixes = (".safetensors",) if to == "mobileclip" else CHECKPOINT_SUFFIXES
    require_output(output, overwrite=overwrite, suffixes=suffixes)
    model, (name, file) = None, split(source)
    if file is not None:
        model, source = name, file
        resolve_spec(model)
    require_checkpoint(source)
    if not source.startswith(PREFIX) and source_of(source) is None and is_same(local_checkpoint(source), output):
        raise ValueError(f"{source} would be replaced by what is made of it; choose another name to write to")
    stored = read_checkpoint(source, model, tower=tower).of_size(image_size=image_size, context_length=context_length)
    converted = reparameterize(stored.build(), inplace=True) if fold else stored.build()
    converted.taught = converted_from(source, model, stored)  # type: ignore[assignment]
    save_model(converted.to(getattr(torch, precision)), output, layout=to)
    state = "folded" if fold or stored.form != "training" else "in training form"
    say(f"wrote {output}: {to} layout, {state}, {precision}, from the {stored.layout} layout")


def list_models(*, as_json: Annotated[bool, arg(name="json")] = False) -> None:
    """List the models and towers that are known by name.

    Of two figures, the first is the image tower's and the second the text tower's. GMACs are of one image and one text,
    folded.

    Args:
        as_json: print one JSON object per model instead of a table.
    """
    from mobileclip.inference.listing import listed_rows

    known = listed_rows()
    if as_json:
        for row in known:
            say_json(row)
        return
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in known[0]:
        table.add_column(column, no_wrap=True)
    for row in known:
        table.add_row(*(value or "" for value in row.values()))
    print_table(table, min_width=110)


def info(model: Annotated[Positional[str], arg(metavar="NAME|FILE|FOLDER")], /) -> None:
    """Print what a model, or a checkpoint, is: its spec as JSON, its form, its size, what it expects as input.

    Multiply-accumulates are those of one image and one text of full length, folded; the papers' tables call them FLOPs.

    Args:
        model: a name, a checkpoint in any known layout, a folder with one, hf-hub:owner/name, or a model of another
            package, as open_clip:MODEL/TAG or transformers:OWNER/NAME; or an index, of which its model and number of
            pictures are printed.
    """
    from mobileclip.inference.catalogue import describe

    if Path(model).is_dir():
        from mobileclip.collections import Collection, is_index

        if is_index(Path(model)):
            say_json(Collection.open(model).described(), indent=2)
            return
    say_json(describe(model), indent=2)


def check_weights(
    model: Annotated[Positional[str], arg(metavar="NAME|NAME=FILE")],
    /,
    *,
    known: Annotated[Path | None, arg(metavar="FILE")] = None,
    image: Annotated[tuple[Path, ...], arg(metavar="IMAGE")] = (),
    output: Annotated[Path, arg(metavar="RECORD.json")] = Path("weights.json"),
    overwrite: bool = False,
) -> None:
    """Compare what a model's published weights give with what others got from them, and write a record.

    mobileclip check-weights mobileclip_s0

    The weights are fetched from the hub, once. Known are embeddings of a text and a picture for mobileclip_s0, and the
    probabilities of three texts for mobileclip_s1, whose pictures have to be given. The exit status is 1 where a number
    is another one, or where nothing could be compared.

    Args:
        model: name of the model; with =FILE behind it, weights in place of the published ones.
        known: a JSON file of known outputs of your own, as mobileclip/inference/known/outputs.json has them.
        image: a picture that is compared and does not come with the package, known by its digest; several times for
            several.
        output: the record to write, *.json.
        overwrite: replace a record that is there.
    """
    import sys

    from mobileclip import storage
    from mobileclip.inference.known import check_weights as checked, known_outputs
    from mobileclip.inference.loading import require_model
    from mobileclip.serialization import to_json

    require_output(output, overwrite=overwrite, suffixes=(".json",))
    for path in image:
        require_file(path, "a file of a picture")
    outputs = known_outputs(known)
    model, checkpoint = split(model)
    require_model(model if checkpoint is None else None, checkpoint)
    record = checked(model, checkpoint, known=outputs, pictures=image)
    storage.make_directory_of(output)
    with storage.atomic_write(output) as stream:
        stream.write(f"{to_json(record, indent=1)}\n".encode())
    for finding in record.findings:
        outcome = {True: "agrees", False: "differs", None: "not compared"}[finding.agrees]
        say(f"{outcome}: {finding.what}{f': {finding.note}' if finding.note else ''}")
    say(f"wrote {output}")
    if not record.agrees:
        sys.exit(1)
