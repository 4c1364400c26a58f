"""ARO: whether a model knows a sentence from a bag of its words.

    aro/
        visual_genome_relation.json, visual_genome_attribution.json, images/2343731.jpg
        coco_karpathy_test.json, val2014/COCO_val2014_000000391895.jpg, coco_order.jsonl
        flickr30k_test.json, flickr30k-images/1007129816.jpg, flickr30k_order.jsonl

`coco_order.jsonl` has the captions in other orders. Its first line says what found nouns and adjectives; each of the
others has, for a caption, an order for each of `PERTURBATIONS`:

    {"tagger": "spaCy en_core_web_sm 3.8.0"}
    {"caption": "A red kite.", "orders": ["A red kite .", ". red kite A", "red A kite .", ". A red kite"]}

Source: Yuksekgonul et al. 2023, "When and why vision-language models behave like bags-of-words, and what to do about
it?" (arXiv 2210.01936), and the code that it is published with.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from mobileclip import storage
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.evaluation.benchmark import Benchmark, hash_of, open_benchmark
from mobileclip.evaluation.encoding import num_images
from mobileclip.evaluation.suite import data_set_folder
from mobileclip.evaluation.tasks.annotations import Entry, folder_or_zip, read_entries
from mobileclip.evaluation.tasks.choices.published import task_of
from mobileclip.evaluation.tasks.choices.scoring import PERTURBATIONS, score_groups, score_orders
from mobileclip.evaluation.tasks.choices.task import Box, Case, ChoiceTask, Picture, Question, View
from mobileclip.evaluation.tasks.task import FoundTask, TaskOptions

PAIRS = {"aro/vg_relation": "VG-Relation", "aro/vg_attribution": "VG-Attribution"}
"""Names in tables."""
ORDERS = {"aro/coco_order": "COCO-Order", "aro/flickr30k_order": "Flickr30k-Order"}
"""Names in tables."""
_FILES = {
    "aro/vg_relation": "visual_genome_relation.json",
    "aro/vg_attribution": "visual_genome_attribution.json",
    "aro/coco_order": "coco_karpathy_test.json",
    "aro/flickr30k_order": "flickr30k_test.json",
}
# The suite's data sets whose captions stand in where ARO's own file is missing.
_CAPTIONS = {
    "aro/coco_order": "retrieval/mscoco_2014_5k_test_image_text_retrieval",
    "aro/flickr30k_order": "retrieval/flickr_1k_test_image_text_retrieval",
}
# Fewer cases say too little of a pair of attributes.
_FEWEST_OF_A_PAIR = 25
_MOST_WORDS = 30
_MARKS = re.compile(r'[.!"()*#:;~]')
_SPACES = re.compile(r"\s{2,}")
# Relations that do not count: symmetric ones, where the swapped caption may be true as well, and those with few test
# cases. Source: Yuksekgonul et al. 2023, the notebook that repeats its results.
_LEFT_OUT = """
adjusting; attached to; between; bigger than; biting; boarding; brushing; chewing; cleaning; climbing; close to;
coming from; coming out of; contain; crossing; dragging; draped over; drinking; drinking from; driving;
driving down; driving on; eating from; eating in; enclosing; exiting; facing; filled with; floating in;
floating on; flying; flying above; flying in; flying over; flying through; full of; going down; going into;
going through; grazing in; growing in; growing on; guiding; hanging from; hanging in; hanging off; hanging over;
higher than; holding onto; hugging; in between; jumping off; jumping on; jumping over; kept in; larger than;
leading; leaning over; leaving; licking; longer than; looking in; looking into; looking out; looking over;
looking through; lying next to; lying on top of; making; mixed with; mounted on; moving; on the back of;
on the edge of; on the front of; on the other side of; opening; painted on; parked at; parked beside; parked by;
parked in; parked in front of; parked near; parked next to; perched on; petting; piled on; playing; playing in;
playing on; playing with; pouring; reaching for; reading; reflected on; riding on; running in; running on;
running through; seen through; sitting behind; sitting beside; sitting by; sitting in front of; sitting near;
sitting next to; sitting under; skiing down; skiing on; sleeping in; sleeping on; smiling at; sniffing; splashing;
sprinkled on; stacked on; standing against; standing around; standing behind; standing beside;
standing in front of; standing near; standing next to; staring at; stuck in; surrounding; swimming in; swinging;
talking to; topped with; touching; traveling down; traveling on; tying; typing on; underneath; wading in;
waiting for; walking across; walking by; walking down; walking next to; walking through; working in; working on;
worn on; wrapped around; wrapped in; by; of; near; next to; with; beside; on the side of; around
"""
LEFT_OUT_RELATIONS = frozenset(" ".join(name.split()) for name in _LEFT_OUT.split(";"))


def open_pairs(found: FoundTask, _: TaskOptions) -> ChoiceTask:
    """Return VG-Relation or VG-Attribution: a caption against the same one with two things, or attributes, swapped.

    Raises:
        ValueError: if the annotation file or the folder of images is missing or malformed, or no group counts; the
            message says which entry.
        OSError: if a store cannot be reached.
    """
    of_relations = found.key == "aro/vg_relation"
    by_picture: dict[str, list[Case]] = {}
    for entry in read_entries(storage.join(found.path, _FILES[found.key]), found.name):
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

    The captions are ARO's own, or those of the data set of the suite that is beside the folder `aro`.

    Raises:
        ValueError: if captions or orders are missing or malformed.
        OSError: if a store cannot be reached.
    """
    path = storage.join(found.path, f"{found.key.removeprefix('aro/')}.jsonl")
    head, *entries = read_entries(path, f"{found.name}, captions in other orders")
    tagger = head.text("tagger")
    orders = {entry.text("caption"): entry.texts("orders", "four texts", count=len(PERTURBATIONS)) for entry in entries}
    benchmark, own = None, storage.join(found.path, _FILES[found.key])
    if storage.exists(own):
        pictures = _own_captions(found, own)
    else:
        place = data_set_folder(_CAPTIONS[found.key], found.path.rpartition("/")[0])
        benchmark = open_benchmark(place, allow_missing=options.allow_missing, rows=options.rows)
        if benchmark.kind != "retrieval":
            raise ValueError(f"{benchmark.name} has classes; orders need captions, a data set for retrieval")
        pictures = []

    def ask(report: SkipReport) -> Iterator[Question]:
        known = pictures if benchmark is None else _benchmark_captions(benchmark, report)
        for picture, texts in known:
            for number, caption in enumerate(texts):
                key, true = f"{picture.name}, caption {number}", normalize_caption(caption)
                if not true:
                    detail = f"{caption[:40]!r} has no word"
                    report.add(Skip(reason="no_caption", key=key, shard=found.path, detail=detail))
                    continue
                if caption not in orders:
                    raise ValueError(f"{path} has no orders of {caption[:60]!r}: it has those of other captions")
                false = map(normalize_caption, orders[caption])
                yield Case(key=key, views=(View(picture.name),), texts=(true, *false))
            yield picture

    return ChoiceTask(
        key=found.key,
        name=f"{found.name} (tagged by {tagger})",
        path=found.path,
        ask=ask,
        count=score_orders,
        num_pictures=len(pictures) if benchmark is None else num_images(benchmark),
        benchmark=benchmark,
        orders=hash_of([tagger, orders]),
    )


def normalize_caption(caption: str) -> str:
    """Return a caption as the benchmark shows it to models: in lower case, without most marks, thirty words at most.

    True captions and other orders alike, so that no mark gives the true one away. Commas and hyphens stay.
    """
    text = _SPACES.sub(" ", _MARKS.sub(" ", caption.lower())).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:_MOST_WORDS])


def _own_captions(found: FoundTask, file: str) -> list[tuple[Picture, tuple[str, ...]]]:
    """Return ARO's own pictures with their captions."""
    images = {}
    for entry in read_entries(file, found.name):
        name, texts = entry.file("image"), entry.texts("caption", "a list of captions")
        images[name] = (Picture(name=name, content=[storage.join(found.path, name)]), texts)
    for folder in {storage.join(found.path, name).rpartition("/")[0] for name in images}:
        folder_or_zip(folder, found.name)
    return list(images.values())


def _benchmark_captions(benchmark: Benchmark, report: SkipReport) -> Iterable[tuple[Picture, tuple[str, ...]]]:
    """Yield the pictures of a data set with their captions, each under a name of its own."""
    times: Counter[str] = Counter()
    for sample in benchmark.samples(report):
        times[sample.key] += 1
        # Several shards may have the same keys.
        name = sample.key if times[sample.key] == 1 else f"{sample.key} ({times[sample.key]})"
        yield Picture(name=name, content=sample.image), sample.captions


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
