"""ARO as it is published: annotation files beside folders of images; and orders of any captioned data set.

    vg/                                              coco/
        visual_genome_relation.json                      coco_karpathy_test.json
        visual_genome_attribution.json                   val2014/COCO_val2014_000000391895.jpg
        images/2343731.jpg                           flickr30k/
                                                         flickr30k_test.json
                                                         flickr30k-images/1007129816.jpg

Source: Yuksekgonul et al. 2023 (arXiv 2210.01936), and the code that it is published with.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from typing import Any, get_args

from mobileclip import storage
from mobileclip.evaluation.datasets.benchmark import Benchmark
from mobileclip.evaluation.encoding.features import num_images
from mobileclip.evaluation.tasks.annotations import Entry, read_list, require_folder
from mobileclip.evaluation.tasks.aro.relations import LEFT_OUT_RELATIONS
from mobileclip.evaluation.tasks.aro.tagging import SpacyTagger, Tagger
from mobileclip.evaluation.tasks.aro.tasks import Aro, Box, CaptionedImage, Case, OrderTask, PairTask, Part, Picture

# Fewer cases say too little of a pair of attributes.
_FEWEST_OF_A_PAIR = 25

_TITLES: dict[Part, str] = {
    "vg_relation": "VG-Relation",
    "vg_attribution": "VG-Attribution",
    "coco_order": "COCO-Order",
    "flickr30k_order": "Flickr30k-Order",
}
_FILES: dict[Part, str] = {
    "vg_relation": "visual_genome_relation.json",
    "vg_attribution": "visual_genome_attribution.json",
    "coco_order": "coco_karpathy_test.json",
    "flickr30k_order": "flickr30k_test.json",
}
# The data sets of the suite, and their names elsewhere, that have the captions of a part.
_BENCHMARKS: dict[str, Part] = {
    "retrieval-mscoco_2014_5k_test_image_text_retrieval": "coco_order",
    "mscoco_2014_5k_test_image_text_retrieval": "coco_order",
    "mscoco_captions": "coco_order",
    "retrieval-flickr_1k_test_image_text_retrieval": "flickr30k_order",
    "flickr_1k_test_image_text_retrieval": "flickr30k_order",
    "flickr30k": "flickr30k_order",
}


def open_aro(part: Part, path: str | os.PathLike[str], *, tagger: Tagger | None = None, seed: int = 0) -> Aro:
    """Return a part of ARO, having read its annotations; images are read when they are asked for.

    Args:
        part: which.
        path: the folder with the annotation file and the images, or its address.
        tagger: for orders, see `SpacyTagger`, which is the one by default; others have no use for it.
        seed: of the orders, see `perturb`.

    Raises:
        ValueError: if the part is unknown, or the annotation file or a folder of images is missing or malformed; the
            message says which entry.
        ModuleNotFoundError: if the default tagger's package is missing; the message says how to install it.
        OSError: if a store cannot be reached.
    """
    if part not in get_args(Part):
        raise ValueError(f"ARO has no part {part!r}; expected one of {', '.join(get_args(Part))}")
    root, title = os.fspath(path), _TITLES[part]
    entries = list(read_list(storage.join(root, _FILES[part]), title))
    if part in ("vg_relation", "vg_attribution"):
        folder = storage.join(root, "images")
        require_folder(folder, title)
        return _pair_task(part, folder, entries)
    images = tuple(_captioned(root, entry) for entry in entries)
    for folder in dict.fromkeys(image.address.rpartition("/")[0] for image in images):
        require_folder(folder, title)
    return OrderTask(
        key=f"aro/{part}",
        title=title,
        source=images,
        tagger=tagger or SpacyTagger(),
        num_pictures=len(images),
        seed=seed,
    )


def order_task(benchmark: Benchmark, *, tagger: Tagger | None = None, seed: int = 0) -> OrderTask:
    """Return COCO-Order or Flickr30k-Order from the suite's own data set, or the order task of another one.

    Args:
        benchmark: of captions.
        tagger: see `SpacyTagger`, which is the one by default.
        seed: of the orders, see `perturb`.

    Raises:
        ValueError: if the data set has classes instead of captions.
        ModuleNotFoundError: if the default tagger's package is missing; the message says how to install it.
    """
    if benchmark.kind != "retrieval":
        raise ValueError(f"{benchmark.name} has classes; orders need captions, a data set for retrieval")
    part = _BENCHMARKS.get(benchmark.name)
    return OrderTask(
        key=f"aro/{part or f'{benchmark.name}_order'}",
        title=_TITLES[part] if part else f"{benchmark.name}-Order",
        source=benchmark,
        tagger=tagger or SpacyTagger(),
        num_pictures=num_images(benchmark),
        seed=seed,
    )


def has_annotations(part: Part, path: str) -> bool:
    """Return whether a folder has the annotation file of a part, as `open_aro` reads it."""
    return storage.exists(storage.join(path, _FILES[part]))


def _pair_task(part: Part, folder: str, entries: list[Entry]) -> PairTask:
    cases: dict[str, list[Case]] = {}
    group_of = _relation if part == "vg_relation" else _attributes
    for entry in entries:
        image = entry.text("image_path")
        case = Case(
            key=f"{image}, entry {entry.index}",
            true_caption=entry.text("true_caption"),
            false_captions=(entry.text("false_caption"),),
            box=_box(entry),
            group=group_of(entry),
        )
        cases.setdefault(image, []).append(case)
    sizes = Counter(case.group for group in cases.values() for case in group)
    if part == "vg_relation":
        counted = [group for group in sizes if group not in LEFT_OUT_RELATIONS]
    else:
        counted = [group for group, size in sizes.items() if size >= _FEWEST_OF_A_PAIR]
    return PairTask(
        key=f"aro/{part}",
        title=_TITLES[part],
        all_pictures=tuple(
            Picture(key=image, cases=tuple(group), address=storage.join(folder, image))
            for image, group in cases.items()
        ),
        counted=tuple(sorted(counted)),
    )


def _captioned(root: str, entry: Entry) -> CaptionedImage:
    name = entry.text("image")
    captions = entry.get("caption", _texts, "a list of captions")
    return CaptionedImage(key=name, captions=captions, address=storage.join(root, name))


def _relation(entry: Entry) -> str:
    return entry.text("relation_name")


def _attributes(entry: Entry) -> str:
    pair = entry.get("attributes", _texts, "two attributes")
    if len(pair) != 2:
        raise ValueError(f"{entry.where}: there are {len(pair)} attributes, expected two")
    return "_".join(pair)


def _box(entry: Entry) -> Box:
    left, top = (entry.get(name, _number, "a number of pixels") for name in ("bbox_x", "bbox_y"))
    width, height = (entry.get(name, _size, "a number of pixels above zero") for name in ("bbox_w", "bbox_h"))
    # As Pillow rounds what it cuts by.
    return round(left), round(top), round(left + width), round(top + height)


def _texts(value: Any) -> tuple[str, ...] | None:
    there = isinstance(value, list) and value and all(isinstance(text, str) for text in value)
    return tuple(value) if there else None


def _number(value: Any) -> float | None:
    there = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if there else None


def _size(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None
