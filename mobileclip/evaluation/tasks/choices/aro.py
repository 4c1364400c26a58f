"""ARO: whether a model knows a sentence from a bag of its words; and orders of the captions of any data set.

    aro/
        visual_genome_relation.json, visual_genome_attribution.json, images/2343731.jpg
        coco_karpathy_test.json, val2014/COCO_val2014_000000391895.jpg
        flickr30k_test.json, flickr30k-images/1007129816.jpg

Source: Yuksekgonul et al. 2023, "When and why vision-language models behave like bags-of-words, and what to do about
it?" (arXiv 2210.01936), and the code that it is published with.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from mobileclip import storage
from mobileclip.data.skips import SkipReport
from mobileclip.evaluation.datasets.benchmark import Benchmark, open_benchmark
from mobileclip.evaluation.datasets.content import hash_of
from mobileclip.evaluation.encoding.features import num_images
from mobileclip.evaluation.suite import key_and_title
from mobileclip.evaluation.tasks.annotations import Entry, folder_or_zip, read_entries
from mobileclip.evaluation.tasks.choices.case import Box, Case, Picture, View
from mobileclip.evaluation.tasks.choices.orders import Captions, Orders
from mobileclip.evaluation.tasks.choices.published import task_of
from mobileclip.evaluation.tasks.choices.relations import LEFT_OUT_RELATIONS
from mobileclip.evaluation.tasks.choices.reordering import needed_tagger, orders_at
from mobileclip.evaluation.tasks.choices.scoring import score_groups, score_orders
from mobileclip.evaluation.tasks.choices.task import ChoiceTask
from mobileclip.evaluation.tasks.task import FoundTask, TaskOptions

# Fewer cases say too little of a pair of attributes.
_FEWEST_OF_A_PAIR = 25
FILES = {
    "aro/vg_relation": "visual_genome_relation.json",
    "aro/vg_attribution": "visual_genome_attribution.json",
    "aro/coco_order": "coco_karpathy_test.json",
    "aro/flickr30k_order": "flickr30k_test.json",
}
"""Annotations, in the folder `aro`."""
PAIRS = {"aro/vg_relation": "VG-Relation", "aro/vg_attribution": "VG-Attribution"}
"""Names in tables."""
ORDERS = {"aro/coco_order": "COCO-Order", "aro/flickr30k_order": "Flickr30k-Order"}
"""Names in tables."""
CAPTIONS = {
    "aro/coco_order": "retrieval/mscoco_2014_5k_test_image_text_retrieval",
    "aro/flickr30k_order": "retrieval/flickr_1k_test_image_text_retrieval",
}
"""The suite's data sets that orders are made of."""


def open_pairs(found: FoundTask, _: TaskOptions) -> ChoiceTask:
    """Return VG-Relation or VG-Attribution: a caption against the same one with two things, or attributes, swapped.

    Raises:
        ValueError: if the annotation file or the folder of images is missing or malformed, or no group counts; the
            message says which entry.
        OSError: if a store cannot be reached.
    """
    of_relations = found.key == "aro/vg_relation"
    by_picture: dict[str, list[Case]] = {}
    for entry in read_entries(storage.join(found.path, FILES[found.key]), found.name):
        attributes = () if of_relations else entry.texts("attributes", "two attributes", count=2)
        case = _pair(entry, entry.text("relation_name") if of_relations else "_".join(attributes))
        by_picture.setdefault(case.views[0].picture, []).append(case)
    cases = list(chain.from_iterable(by_picture.values()))
    sizes = Counter(case.group for case in cases)
    if of_relations:
        counted = sorted(sizes.keys() - LEFT_OUT_RELATIONS)
    else:
        counted = sorted(group for group, size in sizes.items() if size >= _FEWEST_OF_A_PAIR)
    if not counted:
        raise ValueError(
            f"nothing of {found.name} counts: its cases test {', '.join(sorted(sizes)[:5])}; is the annotation file "
            f"the published one, and whole?"
        )
    images = folder_or_zip(storage.join(found.path, "images"), found.name)
    return task_of(found, cases, images, partial(score_groups, counted=counted))


def open_orders(found: FoundTask, options: TaskOptions) -> ChoiceTask:
    """Return COCO-Order or Flickr30k-Order: a caption against four other orders of its words.

    Raises:
        ValueError: if the captions are missing or malformed, or orders are missing and cannot be drawn here.
        ModuleNotFoundError: if orders are missing, and a package to draw them is; the message says what to do.
        OSError: if a store cannot be reached.
    """
    captions = captions_of(found, options)
    path = None if options.orders is None else order_file(captions.key, options.orders)
    return _order_task(captions, orders_at(path, captions))


def order_task(benchmark: Benchmark, *, orders: Orders | None = None) -> ChoiceTask:
    """Return the order task of the captions of any data set.

    Args:
        benchmark: of captions.
        orders: see `read_orders` and `draw_orders`; drawn here if they are left out.

    Raises:
        ValueError, ModuleNotFoundError, OSError: see `open_orders`.
    """
    captions = _of_benchmark(benchmark)
    return _order_task(captions, orders or orders_at(None, captions))


def captions_of(found: FoundTask, options: TaskOptions) -> Captions:
    """Return the captions that orders are made of, from ARO's own files where they are there, or from a data set.

    Raises:
        ValueError: if they are missing or malformed, or the data set has classes instead.
        OSError: if a store cannot be reached.
    """
    file = storage.join(found.path, FILES.get(found.key, ""))
    if found.key not in FILES or not storage.exists(file):
        return _of_benchmark(open_benchmark(found.path, allow_missing=options.allow_missing, rows=options.rows))
    images = {}
    for entry in read_entries(file, found.name):
        name, texts = entry.file("image"), entry.texts("caption", "a list of captions")
        images[name] = (Picture(name=name, content=[storage.join(found.path, name)]), texts)
    for folder in {storage.join(found.path, name).rpartition("/")[0] for name in images}:
        folder_or_zip(folder, found.name)
    return Captions(
        key=found.key, name=found.name, path=found.path, read=lambda _: images.values(), num_pictures=len(images)
    )


def order_file(key: str, folder: Path) -> Path:
    """Return where the orders of a task are."""
    return folder / f"{key.rpartition('/')[2]}.jsonl"


def require_orders(key: str, options: TaskOptions) -> None:
    """Refuse, before any work, orders that are missing and cannot be drawn here.

    Raises:
        ValueError, ModuleNotFoundError: if so; the message says what to do.
    """
    path = None if options.orders is None else order_file(key, options.orders)
    if path is None or not path.exists():
        needed_tagger(path)


def _of_benchmark(benchmark: Benchmark) -> Captions:
    if benchmark.kind != "retrieval":
        raise ValueError(f"{benchmark.name} has classes; orders need captions, a data set for retrieval")

    def read(report: SkipReport) -> Iterator[tuple[Picture, tuple[str, ...]]]:
        times: Counter[str] = Counter()
        for sample in benchmark.samples(report):
            times[sample.key] += 1
            # Several shards may have the same keys.
            name = sample.key if times[sample.key] == 1 else f"{sample.key} ({times[sample.key]})"
            yield Picture(name=name, content=sample.image), sample.captions

    suite_key, _ = key_and_title(benchmark.name)
    key = next((key for key, source in CAPTIONS.items() if source == suite_key), f"aro/{benchmark.name}_order")
    return Captions(
        key=key,
        name=ORDERS.get(key, f"{benchmark.name}-Order"),
        path=benchmark.name,
        read=read,
        num_pictures=num_images(benchmark),
        benchmark=benchmark,
    )


def _order_task(captions: Captions, orders: Orders) -> ChoiceTask:
    return ChoiceTask(
        key=captions.key,
        name=f"{captions.name} (tagged by {orders.tagger})",
        path=captions.path,
        ask=partial(orders.ask, captions),
        count=score_orders,
        num_pictures=captions.num_pictures,
        benchmark=captions.benchmark,
        orders=hash_of([orders.tagger, orders.of]),
    )


def _pair(entry: Entry, group: str) -> Case:
    image = entry.file("image_path")
    left, top = (entry.get(name, _number, "a number of pixels") for name in ("bbox_x", "bbox_y"))
    width, height = (entry.get(name, _size, "a number of pixels above zero") for name in ("bbox_w", "bbox_h"))
    # As Pillow rounds what it cuts by.
    box: Box = (round(left), round(top), round(left + width), round(top + height))
    return Case(
        key=f"{image}, entry {entry.index}",
        views=(View(image, box),),
        texts=(entry.text("true_caption"), entry.text("false_caption")),
        group=group,
    )


def _number(value: Any) -> float | None:
    there = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if there else None


def _size(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None
