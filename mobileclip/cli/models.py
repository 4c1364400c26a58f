"""`mobileclip classify | embed | convert | list | info | check-weights`: commands that use or inspect a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from mobileclip.cli.arguments import (
    ModelFlags,
    TextModel,
    Workers,
    report_left_out,
    report_skipped,
    require_at_least,
    require_checkpoint,
    require_file,
    split,
    without_repeats,
)
from mobileclip.data.images.limits import is_image_name
from mobileclip.datasets.sources import RowOptions
from mobileclip.hardware import FastPrecision
from mobileclip.inputs import Decode
from mobileclip.registry import has_others
from mobileclip.storage import is_same, printable, require_output
from mobileclip.strict import split_lines
from mobileclip.terminal import print_table, say, say_json
from mobileclip.terminal.common import Rare
from mobileclip.terminal.status import conclude

if TYPE_CHECKING:
    from mobileclip.data.skips import Skip
    from mobileclip.inference.embedding import EmbeddingInputs


def classify(
    inputs: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE... LABEL...")] = (),
    /,
    *,
    model: ModelFlags = ModelFlags(),  # noqa: B008  frozen
    text_model: TextModel = None,
    template: Annotated[tuple[str, ...], arg(metavar="TEMPLATE")] = ("{}",),
    decode: Rare[Decode] = "exact",
    as_json: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Print the probability of each label for an image, the most probable label first.

    mobileclip classify photo.jpg "a cat" "a dog" -m mobileclip_s2.pt

    mobileclip classify photos/*.jpg "a cat" "a dog" --json

    Args:
        inputs: image files, then labels. The first argument is an image; all further files before the first label are
            also images. The command refuses a label that is a file or has the extension of an image.
        model: the model and its device.
        text_model: file or folder of a text tower for the labels, in the model's embedding space, such as a tower that
            mobileclip train distil_text trained for another language.
        template: prompt template, such as "a photo of a {}"; repeatable. The embedding of a label is the mean over the
            label's prompts.
        decode: exact decodes a JPEG at full size; fast decodes at reduced size, in half the time or less.
        as_json: print a JSON object of probabilities by label; with several images, by image and label.
    """
    from mobileclip.data.images.transform import load_image
    from mobileclip.inference.loading import load
    from mobileclip.inference.texts import require_labels

    images, labels = _images_and_labels(inputs)
    require_labels(labels, template)
    if len(images) == 1:
        load_image(images[0], reduce=8)  # report unreadable images before fetching weights
    if text_model is not None:
        require_checkpoint(text_model)
    clip = model.load(partial(load, text_model=text_model, decode=decode))
    scores: dict[str, dict[str, float]] = {}
    skipped: list[str] = []
    for image in images:
        with _skipping(skipped):
            scores[image] = clip.classify(image, labels, template=template)
        if not as_json and image in scores:
            _say_scores(scores[image], image if len(images) > 1 else "")
    if as_json:
        say_json(scores if len(images) > 1 else scores.get(images[0], {}))
    report_skipped(skipped, len(images))
    conclude(left_out=skipped, done=bool(scores))


@contextmanager
def _skipping(skipped: list[str]) -> Iterator[None]:
    """Record the error of an unreadable image."""
    from mobileclip.data.images.limits import ImageError

    try:
        yield
    except ImageError as error:
        skipped.append(error.message)


def _say_scores(scores: dict[str, float], image: str) -> None:
    lines = [f"{probability:8.2%}  {label}" for label, probability in scores.items()]
    say("\n".join([printable(image), *lines] if image else lines))


def _images_and_labels(inputs: tuple[str, ...]) -> tuple[list[str], tuple[str, ...]]:
    """Return the images among the arguments of `classify`, and the labels after them."""
    require_file(inputs[0] if inputs else "", "an image file")
    count = next((place for place, one in enumerate(inputs) if place and not Path(one).is_file()), len(inputs))
    for label in inputs[count:]:
        if is_image_name(label) or Path(label).is_file():
            require_file(label, "an image file")
            raise ValueError(
                f"{printable(label)} is a file after the first label; give all image files first, then labels"
            )
    return list(dict.fromkeys(inputs[:count])), inputs[count:]


def embed(
    inputs: Annotated[Positional[tuple[str, ...]], arg(metavar="[IMAGE|FOLDER|DATA...]")] = (),
    /,
    *,
    texts: Path | None = None,
    output: Annotated[Path, arg(metavar="ARCHIVE.npz")] = Path("embeddings.npz"),
    model: ModelFlags = ModelFlags(),  # noqa: B008  frozen
    batch_size: int = 32,
    num_workers: Annotated[int, Workers] = 1,
    precision: Rare[FastPrecision] = "float32",
    decode: Rare[Decode] = "exact",
    rows: Rare[OmitArgPrefixes[RowOptions]] = RowOptions(),  # noqa: B008  frozen
    overwrite: bool = False,
    append: bool = False,
) -> None:
    """Write the unit-length embeddings of images and texts to a NumPy archive.

    mobileclip embed photos/ more/cat.jpg --texts captions.txt -m mobileclip_s2.pt

    The archive contains the arrays image_embedding (images, dim), image_path, text_embedding (texts, dim) and text; the
    entry `model` contains the identity of the weights. The command never mixes embeddings of two models. The command
    skips unreadable images, and prints their names and number.

    Args:
        inputs: image files, and folders of images. The command skips and counts hidden files, links to folders, links
            to files outside the folder, and files without the extension of an image.
        texts: a UTF-8 file with one text per line.
        output: the archive to write, *.npz.
        model: the model and its device.
        batch_size: number of images or texts per batch.
        num_workers: number of processes that decode images.
        precision: lowest precision of the image tower on a CPU. For hundreds of images, the command selects the fastest
            accurate backend; see mobileclip index. An export has its own precision.
        decode: exact decodes a JPEG at full size; fast decodes at reduced size, in half the time or less; see
            mobileclip index.
        rows: column names of `.jsonl` files and tables.
        overwrite: replace an existing archive.
        append: add to an existing archive of the same model, and encode only new images and texts.
    """
    from mobileclip.inference.embedding import SUFFIXES, embed_inputs, read_embeddings, write_embeddings
    from mobileclip.inference.loading import load

    require_at_least(1, batch_size=batch_size, num_workers=num_workers)
    if overwrite and append:
        raise ValueError("--overwrite replaces the archive, --append adds to the archive; give only one of these flags")
    require_output(output, overwrite=overwrite or append, suffixes=SUFFIXES)
    chosen = _embedding_inputs(inputs, texts, rows)
    before = read_embeddings(output) if append and output.exists() else None
    clip = model.load(partial(load, identify=True))
    assert clip.identity is not None, "load() computed it"
    names = {"here": f"the embeddings in {output}", "there": "the new embeddings"}
    if before is not None:
        before.model.require_same(clip.identity, **names)
    new, skipped = embed_inputs(
        clip,
        clip.identity,
        chosen,
        before=before,
        precision=precision,
        batch_size=batch_size,
        num_workers=num_workers,
        decode=decode,
    )
    report_skipped(skipped, len(new.image_paths) + len(skipped))
    embeddings = new if before is None else before.joined(new, **names)
    if not embeddings.image_paths and not embeddings.texts:
        say("no image could be embedded, so nothing was written", error=True)
        conclude(left_out=skipped, done=False)
        return
    write_embeddings(output, embeddings, overwrite=overwrite or append)
    done = "wrote" if before is None else "added"
    say(f"{done} {len(new.image_paths)} image and {len(new.texts)} text embeddings to {output}")
    conclude(left_out=skipped)


def _embedding_inputs(inputs: tuple[str, ...], texts: Path | None, rows: RowOptions) -> EmbeddingInputs:
    """Return the images and texts to embed, or raise if a file is missing."""
    from mobileclip.datasets.sources.opening import is_packed, require_data_set
    from mobileclip.inference.embedding import EmbeddingInputs, read_texts

    data = tuple(dict.fromkeys(filter(is_packed, inputs)))
    for place in data:
        require_data_set(place)
    paths = _images_at([one for one in inputs if one not in data])
    if texts is not None:
        require_file(texts, "a file with one text per line")
    sentences = () if texts is None else tuple(read_texts(texts))
    if not paths and not data and not sentences:
        raise ValueError("there is nothing to embed; give image files, folders with images, or --texts FILE")
    return EmbeddingInputs(paths=tuple(paths), data=data, texts=sentences, rows=rows)


def _images_at(inputs: list[str]) -> list[Path]:
    from mobileclip.data.images.files import find_images

    images: list[Path] = []
    left_out: list[Skip] = []
    for given in inputs:
        if not given.strip() or not Path(given).is_dir():
            require_file(given, "an image file, or a folder with images")
        found, others = find_images(Path(given))
        images += found
        left_out += others
    report_left_out(left_out)
    return without_repeats(images)


def convert(
    source: Annotated[Positional[str], arg(metavar="FILE|NAME=FILE")],
    /,
    *,
    output: Annotated[Path, arg(metavar="FILE|FOLDER")],
    to: Literal["mobileclip", "official", "open_clip", "open_clip_coca", "timm", "transformers"] = "mobileclip",
    tower: Literal["image", "text"] | None = None,
    fold: bool = False,
    image_size: Rare[int | None] = None,
    context_length: Rare[int | None] = None,
    precision: Literal["float32", "float16", "bfloat16"] = "float32",
    overwrite: bool = False,
) -> None:
    """Convert a checkpoint, or one tower, to another layout; the command refuses unknown tensors.

    mobileclip convert mobileclip_s2.pt -o s2.safetensors --fold

    mobileclip convert mobileclip_s2.pt --to transformers -o s2_transformers

    The converted file stores the identity of the source's embedding space, so text towers distilled from the source
    also work with the converted image tower.

    Args:
        source: a checkpoint in any known layout, a folder with one, hf-hub:OWNER/NAME, or a model of another package;
            NAME=FILE for a file that does not state its model.
        output: the file to write, or for transformers the folder; mobileclip's own layout is *.safetensors.
        to: layout of the output: mobileclip, official (Apple's code), open_clip, open_clip_coca, timm (without text
            towers), or transformers (a folder, also for sentence-transformers).
        tower: write only the image or the text tower; by default the whole model.
        fold: reparameterize branches, norms and scales; the result cannot be trained.
        image_size: side of the input images in pixels, instead of the model's default; a ViT then interpolates its
            position embeddings.
        context_length: number of token ids per text, at most the model's default; see load_model in
            mobileclip.encoders.
        precision: dtype of the output weights; folding happens before the cast.
        overwrite: replace an existing file.
    """
    import torch

    from mobileclip.encoders import save_model
    from mobileclip.encoders.checkpoints import PREFIX, hub_licence_of, read_checkpoint, resolve_spec
    from mobileclip.encoders.checkpoints.hub import local_checkpoint
    from mobileclip.encoders.checkpoints.loading import source_of
    from mobileclip.inference.identity import converted_from
    from mobileclip.inference.loading import CHECKPOINT_SUFFIXES
    from mobileclip.interop import save_pretrained
    from mobileclip.interop.folder import require_folder
    from mobileclip.reparam import reparameterize

    if to == "transformers":
        require_folder(output, overwrite=overwrite)
        if fold or precision != "float32":
            raise ValueError("transformers loads the training form in float32; omit --fold and --precision")
    else:
        suffixes = (".safetensors",) if to == "mobileclip" else CHECKPOINT_SUFFIXES
        require_output(output, overwrite=overwrite, suffixes=suffixes)
    model, (name, file) = None, split(source)
    if file is not None:
        model, source = name, file
        resolve_spec(model)
    require_checkpoint(source)
    if not source.startswith(PREFIX) and source_of(source) is None and is_same(local_checkpoint(source), output):
        raise ValueError(f"{source} is also the output; choose another name for the output")
    stored = read_checkpoint(source, model, tower=tower).of_size(image_size=image_size, context_length=context_length)
    converted = reparameterize(stored.build(), inplace=True) if fold else stored.build()
    converted.provenance = converted_from(source, model, stored)  # type: ignore[assignment]
    if to == "transformers":
        licence = hub_licence_of(source)
        save_pretrained(converted, output, license=licence, library=to, overwrite=overwrite)
    else:
        save_model(converted.to(getattr(torch, precision)), output, layout=to)
    state = "folded" if fold or stored.form != "training" else "in training form"
    say(f"wrote {output}: {to} layout, {state}, {precision}, from the {stored.layout} layout")


LISTED = resources.files("mobileclip.inference") / "models.jsonl"
"""Cached result of `mobileclip.inference.catalogue.rows` for the library's own models, one line per model.
Computing the rows takes seconds, and needs PyTorch."""


def listed_rows() -> list[dict[str, str | None]]:
    """Return the rows of `mobileclip.inference.catalogue.rows`, from the cache if possible."""
    kept: list[dict[str, str | None]] = [json.loads(line) for line in split_lines(LISTED.read_text(encoding="utf-8"))]
    # A process that has added a model has imported the registries.
    if not has_others("model", "image_encoder", "text_encoder") and "mobileclip.blocks" not in sys.modules:
        return kept
    from mobileclip.inference.catalogue import rows

    return [*kept, *rows(known={str(row["name"]) for row in kept})]


def list_models(*, as_json: Annotated[bool, arg(name="json")] = False) -> None:
    """List all named models and towers.

    Each pair of numbers is for the image tower and the text tower. GMACs (billions of multiply-accumulates) are for one
    image and one text, with folded towers.

    Args:
        as_json: print one JSON object per model instead of a table.
    """
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
    """Print the spec (JSON), form, size and input of a model or checkpoint.

    The multiply-accumulates are for one image and one text of full length, with reparameterized towers; the papers'
    tables call multiply-accumulates FLOPs.

    Args:
        model: a name, a checkpoint in any known layout, a folder with one, hf-hub:owner/name, or a model of another
            package, as open_clip:MODEL/TAG or transformers:OWNER/NAME; or an index (the command prints its model and
            number of images).
    """
    from mobileclip.inference.catalogue import describe

    if Path(model).is_dir():
        from mobileclip.collections import Collection, is_index

        if is_index(Path(model)):
            say_json(Collection.open(model).info(), indent=2)
            return
    say_json(describe(model), indent=2)


def check_weights(
    model: Annotated[Positional[str], arg(metavar="NAME|NAME=FILE")],
    /,
    *,
    known: Rare[Annotated[Path | None, arg(metavar="FILE")]] = None,
    image: Annotated[tuple[Path, ...], arg(metavar="IMAGE")] = (),
    output: Annotated[Path, arg(metavar="RECORD.json")] = Path("weights.json"),
    overwrite: bool = False,
) -> None:
    """Compare a model's outputs with published outputs of the same weights, and write a record.

    mobileclip check-weights mobileclip_s0

    The command downloads the weights once. The package contains published embeddings of a text and an image for
    mobileclip_s0, and published probabilities of three texts for mobileclip_s1 (pass the images with --image). The exit
    status is 1 if a number differs, or if there was nothing to compare.

    Args:
        model: name of the model, or NAME=FILE for other weights.
        known: a JSON file of known outputs, in the format of mobileclip/inference/known_outputs/outputs.json.
        image: an image that the known outputs need but the package lacks, recognised by its digest; repeatable.
        output: the record to write, *.json.
        overwrite: replace an existing record.
    """
    import sys

    from mobileclip import storage
    from mobileclip.inference.known import check_weights as checked, known_outputs
    from mobileclip.inference.loading import require_model
    from mobileclip.serialization import to_json

    require_output(output, overwrite=overwrite, suffixes=(".json",))
    for path in image:
        require_file(path, "an image file")
    outputs = known_outputs(known)
    model, checkpoint = split(model)
    require_model(model if checkpoint is None else None, checkpoint)
    record = checked(model, checkpoint, known=outputs, images=image)
    storage.make_directory_of(output)
    with storage.atomic_write(output) as stream:
        stream.write(f"{to_json(record, indent=1)}\n".encode())
    for finding in record.findings:
        outcome = {True: "agrees", False: "differs", None: "not compared"}[finding.agrees]
        say(f"{outcome}: {finding.what}{f': {finding.note}' if finding.note else ''}")
    say(f"wrote {output}")
    if not record.agrees:
        sys.exit(1)
