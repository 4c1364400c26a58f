"""A data set to evaluate on, written in the layout that `open_benchmark` and CLIP_benchmark read."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from itertools import count, islice

import numpy as np

from mobileclip import storage
from mobileclip.data.images.limits import find_format
from mobileclip.data.shards.files import write_shard_members
from mobileclip.data.shards.tar import split_name
from mobileclip.evaluation.benchmark import Benchmark, BenchmarkSample, Kind, open_benchmark
from mobileclip.strict import split_lines

# CLIP_benchmark's decoders take these.
_PUBLIC_FORMATS = ("JPEG", "PNG", "WEBP")


def write_benchmark(
    path: str | os.PathLike[str],
    samples: Iterable[BenchmarkSample],
    *,
    class_names: Sequence[str] = (),
    templates: Sequence[str] = (),
    samples_per_shard: int = 250,
    split: str = "test",
) -> Benchmark:
    """Write a data set and return it as `open_benchmark` reads it: for classification, or for retrieval without names.

    The number of shards is written last and removed first, so that a data set that is not whole is none. Equal
    arguments give equal bytes.

    Args:
        path: its folder, or a URL of one; made where it is missing.
        samples: at least one, no key twice. Their images are PNG, JPEG or WebP files, kept as they are.
        class_names: in the order of the labels; empty where the samples have captions.
        templates: prompts with one `{}` where the name goes; empty where the samples have captions.
        samples_per_shard: at most so many in each. CLIP_benchmark needs as many shards as it has workers.
        split: the folder of the shards.

    Raises:
        ValueError: if something could not be read again as it is: the message says which name, template or sample.
    """
    kind: Kind = "classification" if class_names or templates else "retrieval"
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1, not {samples_per_shard}")
    if kind == "classification":
        _check_names(class_names, templates)
    root = os.fspath(path).rstrip("/")
    shards = storage.join(root, split)
    count_path = storage.join(shards, "nshards.txt")
    storage.make_directory(shards)
    storage.remove(count_path)
    num_shards = 0
    keys: set[str] = set()
    remaining = iter(samples)
    while batch := list(islice(remaining, samples_per_shard)):
        for sample in batch:
            if sample.key in keys:
                raise ValueError(f"key {sample.key!r} comes twice; keys must be unique")
            keys.add(sample.key)
        members = ((one.key, _members(one, kind, num_classes=len(class_names))) for one in batch)
        write_shard_members(storage.join(shards, f"{num_shards}.tar"), members)
        num_shards += 1
    if not num_shards:
        raise ValueError(f"there are no samples to write to {root}")
    _remove_shards(shards, first=num_shards)
    _write_lines(storage.join(root, "dataset_type.txt"), [kind])
    if kind == "classification":
        _write_lines(storage.join(root, "classnames.txt"), class_names)
        _write_lines(
            storage.join(root, "zeroshot_classification_templates.txt"),
            [template.replace("{}", "{c}") for template in templates],
        )
    _write_lines(count_path, [str(num_shards)])
    return open_benchmark(root, split=split)


def _remove_shards(shards: str, *, first: int) -> None:
    """Remove what a larger data set left behind."""
    for number in count(first):
        path = storage.join(shards, f"{number}.tar")
        if not storage.exists(path):
            return
        storage.remove(path)


def _check_names(class_names: Sequence[str], templates: Sequence[str]) -> None:
    if not class_names or not templates:
        raise ValueError(
            f"classification needs class names and templates, got {len(class_names)} and {len(templates)}; "
            "retrieval has neither"
        )
    for number, name in enumerate(class_names):
        _check_line(f"class {number}", name)
    for template in templates:
        _check_line("a template", template)
        if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
            raise ValueError(f"template {template!r} needs one {{}} where the class name goes, and no other braces")


def _check_line(what: str, text: str) -> None:
    """Refuse what a reader that goes line by line, and takes blanks off the ends, would change."""
    if not text or text.strip() != text or len(split_lines(text)) != 1:
        raise ValueError(f"{what} is {text!r}, expected one line of text without blanks around it")


def _members(sample: BenchmarkSample, kind: Kind, *, num_classes: int) -> dict[str, bytes]:
    where = f"sample {sample.key!r}"
    extension = _extension(sample.image)
    if extension is None:
        raise ValueError(f"{where}: its image starts with {sample.image[:8]!r}, expected a PNG, JPEG or WebP file")
    if split_name(f"{sample.key}.{extension}") != (sample.key, extension):
        raise ValueError(f"{where}: this cannot be a key; use letters, digits, - and _")
    members = {extension: sample.image}
    if kind == "classification":
        if sample.captions or sample.label is None or not 0 <= sample.label < num_classes:
            raise ValueError(f"{where}: expected a label from 0 to {num_classes - 1} and no captions, got {sample}")
        members["cls"] = str(sample.label).encode()
    else:
        if sample.label is not None or not sample.captions:
            raise ValueError(f"{where}: expected captions and no label, got {sample}; labels need class names")
        for caption in sample.captions:
            _check_line(f"{where}: a caption", caption)
        members["txt"] = "\n".join(sample.captions).encode()
    if sample.metadata is not None:
        stream = io.BytesIO()
        np.save(stream, np.array(sample.metadata, np.int64), allow_pickle=False)
        members["npy"] = stream.getvalue()
    return members


def _extension(image: bytes) -> str | None:
    kind = find_format(image)
    return kind.extensions[0] if kind is not None and kind.name in _PUBLIC_FORMATS else None


def _write_lines(path: str, lines: Sequence[str]) -> None:
    storage.write_text(path, "".join(f"{line}\n" for line in lines))
