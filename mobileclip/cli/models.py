"""`mobileclip classify | embed | convert | list | info`: what is done with a model."""

# ruff: noqa: T201  what a command prints is what it is for

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
DEFAULT_MODEL = "mobileclip_s0"

Model = Annotated[str | None, arg(aliases=["-m"], metavar="NAME")]
Checkpoint = Annotated[str | None, arg(aliases=["-c"], metavar="FILE|hf-hub:OWNER/NAME")]


def classify(
    image: Annotated[Positional[str], arg(metavar="IMAGE")],
    labels: Annotated[Positional[tuple[str, ...]], arg(metavar="LABEL...")],
    /,
    *,
    model: Model = None,
    checkpoint: Checkpoint = None,
    template: str = "{}",
    as_json: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Print how probable each label is for an image, the most probable first.

    mobileclip classify photo.jpg "a cat" "a dog" --checkpoint mobileclip_s2.pt

    Args:
        image: an image file.
        labels: the texts to choose among.
        model: name of the model; found from the checkpoint if left out, and mobileclip_s0 without one.
        checkpoint: weights in any known layout; without it the published ones are fetched from the hub, once.
        template: the sentence that each label is put into, such as "a photo of a {}".
        as_json: print one JSON object instead of lines.
    """
    from mobileclip.pipeline import load

    clip = load(model or (None if checkpoint else DEFAULT_MODEL), checkpoint)
    scores = clip.classify(image, labels, template=template)
    if as_json:
        print(json.dumps(scores, ensure_ascii=False))
        return
    for label, probability in scores.items():
        print(f"{probability:8.2%}  {label}")


def embed(
    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="[IMAGE|FOLDER...]")] = (),
    /,
    *,
    texts: Path | None = None,
    output: Annotated[Path, arg(aliases=["-o"])] = Path("embeddings.npz"),
    model: Model = None,
    checkpoint: Checkpoint = None,
    batch_size: int = 32,
) -> None:
    """Write the unit-length embeddings of images and texts to a NumPy archive.

    mobileclip embed photos/ more/cat.jpg --texts captions.txt --checkpoint mobileclip_s2.pt

    The archive holds image_embedding (images, dim) with image_path, and text_embedding (texts, dim) with text, as far
    as they were given. Images that cannot be read are named, counted and left out; the exit status is then 1.

    Args:
        inputs: image files, and folders that are searched for image files.
        texts: a UTF-8 file with one text per line.
        output: the archive to write.
        model: name of the model; found from the checkpoint if left out, and mobileclip_s0 without one.
        checkpoint: weights in any known layout; without it the published ones are fetched from the hub, once.
        batch_size: images or texts encoded at once.
    """
    from mobileclip.embedding import embed_files
    from mobileclip.pipeline import load

    paths = [path for given in inputs for path in _images_at(given)]
    lines = [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()] if texts else []
    if not paths and not lines:
        raise ValueError("there is nothing to embed; give image files, folders with images, or --texts FILE")
    clip = load(model or (None if checkpoint else DEFAULT_MODEL), checkpoint)
    skipped = embed_files(clip, paths, lines, output, batch_size=batch_size)
    print(f"wrote {len(paths) - len(skipped)} image and {len(lines)} text embeddings to {output}")
    if skipped:
        print(f"left out {len(skipped)} of {len(paths)} images:", file=sys.stderr)
        for reason in skipped:
            print(f"  {reason}", file=sys.stderr)
        sys.exit(1)


def convert(
    source: Annotated[Positional[str], arg(metavar="SOURCE")],
    destination: Annotated[Positional[Path], arg(metavar="DESTINATION")],
    /,
    *,
    to: Literal["mobileclip", "official", "open_clip"] = "mobileclip",
    model: Model = None,
    tower: Literal["image", "text"] | None = None,
    fold: bool = False,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
) -> None:
    """Write a checkpoint in another layout, whole or one tower of it, every tensor accounted for.

    mobileclip convert mobileclip_s2.pt s2.safetensors --fold

    Args:
        source: a checkpoint in any known layout, or hf-hub:owner/name.
        destination: the file to write; our own layout is *.safetensors.
        to: the layout: our own with the spec inside, the research release's, or open_clip's.
        model: name of the model; found from the file if left out.
        tower: write this tower alone.
        fold: fold branches, norms and scales for inference; the result can no longer be trained.
        dtype: of the weights; folding happens before the cast.
    """
    import torch

    from mobileclip.encoders import save_model
    from mobileclip.encoders.checkpoints import read_checkpoint
    from mobileclip.reparam import reparameterize

    stored = read_checkpoint(source, model, tower=tower)
    converted = reparameterize(stored.build()) if fold else stored.build()
    save_model(converted.to(getattr(torch, dtype)), destination, layout=to)
    state = "folded" if fold or stored.form != "training" else "in training form"
    print(f"wrote {destination}: {to} layout, {state}, {dtype}, from the {stored.layout} layout")


def list_models(*, as_json: Annotated[bool, arg(name="json")] = False) -> None:
    """List the models and towers that are known by name.

    Args:
        as_json: print one JSON object per model instead of a table.
    """
    from mobileclip.catalogue import rows

    if as_json:
        for row in rows():
            print(json.dumps(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in rows()[0]:
        table.add_column(column, no_wrap=True)
    for row in rows():
        table.add_row(*(value or "" for value in row.values()))
    Console().print(table)


def info(model: Annotated[Positional[str], arg(metavar="NAME|FILE")], /) -> None:
    """Print what a model, or a checkpoint, is: its spec as JSON, its form, its size, what it expects as input.

    Args:
        model: a name, a checkpoint file in any known layout, or hf-hub:owner/name.
    """
    from mobileclip.catalogue import describe

    print(json.dumps(describe(model), indent=2))


def _images_at(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    return [path]
