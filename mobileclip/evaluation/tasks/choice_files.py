"""Multiple-choice tasks in their published file formats: ARO, SugarCrepe, Winoground, WinoGAViL and long captions.

    aro/
        visual_genome_relation.json, visual_genome_attribution.json, images/2343731.jpg
        coco_karpathy_test.json, val2014/COCO_val2014_000000391895.jpg, coco_order.jsonl
        flickr30k_test.json, flickr30k-images/1007129816.jpg, flickr30k_order.jsonl
    sugarcrepe/
        add_att.json, ...      {"0": {"filename": "000000085329.jpg", "caption": "...", "negative_caption": "..."}, ...}
        val2017/               COCO's images, or the published val2017.zip
    winoground/
        examples.jsonl         {"caption_0": "...", "caption_1": "...", "image_0": "ex_0_img_0", "image_1": ...}
        images/                ex_0_img_0.png, ...; or the published images.zip
    winogavil/
        winogavil_dataset.csv  one case per row: ID, cue, candidates and associations (JSON lists of names)
        winogavil_images.zip   images of all candidates, winogavil_images/NAME.jpg; or the unpacked folder
    urban1k/
        caption/1.txt, ...     one caption per file
        image/1.jpg, ...
    sharegpt4v/
        share-captioner_coco_lcs_sam_1246k_1107.json    its first 1,000 entries are the test set: {"image":
                               "sam/images/sa_1.jpg", "conversations": [{...}, {"value": "the caption"}]}
        sam/images/sa_1.jpg, ...

`coco_order.jsonl` contains the captions with shuffled words. The first line names the tagger of nouns and adjectives.
Each following line contains one caption and its word orders, one for each of `PERTURBATIONS`:

    {"tagger": "spaCy en_core_web_sm 3.8.0"}
    {"caption": "A red kite.", "orders": ["A red kite .", ". red kite A", "red A kite .", ". A red kite"]}

The files of Winoground and WinoGAViL are from the data sets `facebook/winoground` (folder `data/`) and
`nlphuji/winogavil` on the Hugging Face hub, which require users to accept the licences before the download.

Source: Yuksekgonul et al. 2023, "When and why vision-language models behave like bags-of-words, and what to do about
it?" (arXiv 2210.01936), for ARO; Hsieh et al. 2023 (SugarCrepe, arXiv 2306.14610), Thrush et al. 2022 (Winoground,
arXiv 2204.03162), Bitton et al. 2022 (WinoGAViL, arXiv 2207.12576), Zhang et al. 2024 (Long-CLIP, arXiv 2403.15378),
and the code released with these papers.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, count, islice
from typing import Any, TypeVar

import attrs

from mobileclip import storage
from mobileclip.data.images.limits import IMAGE_EXTENSIONS
from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.datasets.sources.shards import files_of_page
from mobileclip.datasets.sources.tables import open_table
from mobileclip.evaluation.data import Benchmark, hash_of, open_benchmark
from mobileclip.evaluation.features import Features, num_images
from mobileclip.evaluation.spec import TaskOptions
from mobileclip.evaluation.suite import data_set_folder
from mobileclip.evaluation.tasks.choices import (
    PERTURBATIONS,
    Box,
    Case,
    CaseImage,
    CaseOrImage,
    ChoiceTask,
    Scored,
    View,
    find_case_images,
    score_associations,
    score_groups,
    score_matches,
    score_orders,
    score_pairs,
    score_retrieval,
)
from mobileclip.evaluation.tasks.task import FoundTask
from mobileclip.strict import parse_json, split_lines

_MAX_BYTES = 1 << 28
# ShareGPT4V's file is about a gigabyte, but its first thousand entries take less than two megabytes.
_MAX_HEAD_BYTES = 1 << 24
_SEPARATORS = re.compile(r"[\s,]*")

Value = TypeVar("Value")


@attrs.frozen
class Entry:
    """One object or row of an annotation file.

    Args:
        where: name of the file and number of the entry, for messages.
        values: values of the object by field name.
        index: index (from 0) or key of the object in the file.
    """

    where: str
    values: Mapping[str, Any]
    index: int | str

    def get(self, name: str, read: Callable[[Any], Value | None], expected: str) -> Value:
        """Return a value, converted by `read`.

        Raises:
            ValueError: if the value is missing, or `read` returns None.
        """
        value = None if name not in self.values else read(self.values[name])
        if value is None:
            there = repr(self.values[name])[:60] if name in self.values else "missing"
            raise ValueError(f"{self.where}: {name} is {there}, expected {expected}")
        return value

    def text(self, name: str) -> str:
        """Return a non-blank text."""
        return self.get(name, _text, "a text")

    def texts(self, name: str, expected: str, *, count: int | None = None) -> tuple[str, ...]:
        """Return a list of `count` texts, or of one or more texts if `count` is None."""
        return self.get(name, partial(_texts, count=count), expected)

    def file(self, name: str) -> str:
        """Return the relative path of a file in the data folder."""
        return self.get(name, file_name, "the name of a file")


def read_entries(path: str, title: str, *, num_first: int | None = None) -> Iterator[Entry]:
    """Yield the objects of a JSON list, the values of a JSON object, or the rows of a `.jsonl` or `.csv` file.

    Args:
        path: path or URL of the file.
        title: name of the data set, for messages.
        num_first: number of objects to yield from a JSON list, in which case the function reads only the beginning of
            the file; None for all objects.

    Raises:
        ValueError: if the file is missing, has no entries, or is malformed.
        OSError: if a store cannot be reached.
    """
    try:
        if num_first is None:
            data = storage.read_bytes(path, limit=_MAX_BYTES)
        else:
            with storage.open_read(path) as stream:
                data = stream.read(_MAX_HEAD_BYTES)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; expected a file with the annotations of {title}") from None
    is_empty = True
    found = _values(path, data) if num_first is None else islice(_first_values(path, data), num_first)
    for where, index, values in found:
        is_empty = False
        if not isinstance(values, dict):
            raise ValueError(f"{path}{where} is {str(values)[:60]!r}, expected an object")
        yield Entry(f"{path}{where}", values, index)
    if is_empty:
        raise ValueError(f"expected annotations in {path}, got {data[:60].decode(errors='replace')!r}")


def _first_values(path: str, data: bytes) -> Iterator[tuple[str, int, Any]]:
    """Yield the entries of a possibly truncated JSON list, in the form of `_values`."""
    text = data.decode(errors="ignore")
    decoder, position = json.JSONDecoder(), text.find("[") + 1
    for index in count() if position else ():
        position = _SEPARATORS.match(text, position).end()  # type: ignore[union-attr]  # it matches the empty string too
        if text[position : position + 1] in ("]", ""):
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, entry {index} is not valid JSON: {error}") from None
        yield f", entry {index}", index, value


def _values(path: str, data: bytes) -> Iterator[tuple[str, int | str, Any]]:
    """Yield the location, the index and the value of each entry."""
    if path.endswith((".csv", ".jsonl")):
        for index, (_, label, values) in enumerate(open_table(path).rows()):
            if isinstance(values, BadSampleError):
                raise ValueError(f"{path}: {values.detail}")
            yield f", {label}", index, values
        return
    try:
        values = parse_json(data, max_characters=_MAX_BYTES)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    items = values.items() if isinstance(values, dict) else enumerate(values if isinstance(values, list) else ())
    yield from ((f", entry {index!r:.60}", index, value) for index, value in items)


def folder_or_zip(path: str, title: str) -> str:
    """Return the folder of images at `path`, or, if it exists, the zip file with the name of the folder plus `.zip`.

    On remote stores, a missing folder raises an error only when the first image is read.

    Raises:
        ValueError: if neither the folder nor the zip file exists.
    """
    if storage.exists(f"{path}.zip"):
        return f"{path}.zip"
    if not storage.is_remote(path) and not storage.is_directory(path):
        raise ValueError(f"{path} is missing; expected a folder with the images of {title}")
    return path


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _texts(value: Any, *, count: int | None) -> tuple[str, ...] | None:
    there = isinstance(value, list) and value and all(isinstance(text, str) for text in value)
    return tuple(value) if there and count in (None, len(value)) else None


def file_name(value: Any) -> str | None:
    """Return a path relative to the data folder; None if the path leads outside the folder."""
    name = _text(value)
    if name is None or any(mark in name for mark in "\\\0:") or {"", ".", ".."} & set(name.split("/")):
        return None
    return name


_MAX_TEXT_BYTES = 1 << 20
_NUM_ENTRIES = 1000
_SHAREGPT4V = "share-captioner_coco_lcs_sam_1246k_1107.json"

PREFIX = "comp/sugarcrepe_"
SUGARCREPE = {
    "replace_obj": "SugarCrepe Replace Object",
    "replace_att": "SugarCrepe Replace Attribute",
    "replace_rel": "SugarCrepe Replace Relation",
    "swap_obj": "SugarCrepe Swap Object",
    "swap_att": "SugarCrepe Swap Attribute",
    "add_obj": "SugarCrepe Add Object",
    "add_att": "SugarCrepe Add Attribute",
}
"""Display names of the SugarCrepe subsets, by the change that makes a caption false."""


def task_of(
    found: FoundTask, cases: Iterable[Case], images: str, compute_metrics: Callable[[Features], Scored]
) -> ChoiceTask:
    """Return a multiple-choice task from cases and a folder or zip file of images."""
    known = tuple(cases)
    if not known:
        raise ValueError(f"{found.path} has no cases of {found.name}")
    names = tuple(dict.fromkeys(view.image for case in known for view in case.views))
    return ChoiceTask(
        key=found.key,
        name=found.name,
        path=found.path,
        load_cases=lambda _: chain(known, find_case_images(images, names)),
        compute_metrics=compute_metrics,
        num_images=len(names),
    )


def open_sugarcrepe(found: FoundTask, _: TaskOptions) -> ChoiceTask:
    """Return one subset of SugarCrepe: true captions against equally fluent but false captions.

    Raises:
        ValueError: if the captions or the images are missing or malformed; the message names the entry.
        OSError: if a store cannot be reached.

    Differs: the public code counts equal scores as wrong, not as half correct; only a collapsed model gives equal
    scores.
    """
    entries = read_entries(storage.join(found.path, f"{found.key.removeprefix(PREFIX)}.json"), found.name)
    cases = [
        Case(
            key=str(entry.index),
            views=(_view(entry, "filename"),),
            texts=(entry.text("caption"), entry.text("negative_caption")),
        )
        for entry in entries
    ]
    return task_of(found, cases, folder_or_zip(storage.join(found.path, "val2017"), found.name), score_pairs)


def open_winoground(found: FoundTask, _: TaskOptions) -> ChoiceTask:
    """Return Winoground, or data in its format: two images to match with two captions that consist of the same words.

    Raises:
        ValueError: if the captions or the images are missing or malformed; the message names the line.
        OSError: if a store cannot be reached.
    """
    cases = [
        Case(
            key=str(entry.index),
            views=(_view(entry, "image_0"), _view(entry, "image_1")),
            texts=(entry.text("caption_0"), entry.text("caption_1")),
        )
        for entry in read_entries(storage.join(found.path, "examples.jsonl"), found.name)
    ]
    return task_of(found, cases, folder_or_zip(storage.join(found.path, "images"), found.name), score_matches)


def open_winogavil(found: FoundTask, _: TaskOptions) -> ChoiceTask:
    """Return WinoGAViL: a cue and five to twelve candidate images, some of which people associated with the cue.

    Raises:
        ValueError: if the table or the images are missing, or a row is malformed; the message names the line.
        OSError: if a store cannot be reached.
    """
    root = files_of_page(found.path)
    cases: dict[str, Case] = {}
    for entry in read_entries(storage.join(root, "winogavil_dataset.csv"), found.name):
        key, cue = entry.text("ID").strip(), entry.text("cue").strip().lower()
        candidates, chosen = (
            entry.get(name, _names, "a JSON list of image names") for name in ("candidates", "associations")
        )
        right = tuple(place for place, name in enumerate(candidates) if name in chosen)
        if not right:
            raise ValueError(f"{entry.where}: none of the candidates is among the associations")
        if key in cases:
            raise ValueError(f"{entry.where}: ID {key!r} occurs twice")
        prompt = f"{'An' if cue[0] in 'aeiou' else 'A'} {cue}"
        cases[key] = Case(key=key, views=tuple(map(View, candidates)), texts=(prompt,), right=right)
    images = folder_or_zip(storage.join(root, "winogavil_images"), found.name)
    return task_of(found, cases.values(), images, score_associations)


def open_urban1k(found: FoundTask, _: TaskOptions) -> ChoiceTask:
    """Return Urban-1k: images with long captions; as in the public code, only a caption's first line counts.

    Raises:
        ValueError: if there are no captions, or a caption has no image; the message names the path.
        OSError: if a store cannot be reached.
    """
    files = storage.find_files(found.path)
    images = {
        name.removeprefix("image/").rpartition(".")[0]: name
        for name in files
        if name.startswith("image/") and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
    }
    cases = []
    for name in sorted(name for name in files if name.startswith("caption/") and name.endswith(".txt")):
        key, place = name.removeprefix("caption/").removesuffix(".txt"), storage.join(found.path, name)
        if key not in images:
            raise ValueError(f"{place} has no matching image: image/{key}.jpg is missing")
        text = storage.read_bytes(place, limit=_MAX_TEXT_BYTES).decode("utf-8-sig", "replace")
        cases.append(Case(key=key, views=(View(images[key]),), texts=((split_lines(text) or [""])[0],)))
    return task_of(found, cases, found.path, score_retrieval)


def open_sharegpt4v(found: FoundTask, _: TaskOptions) -> ChoiceTask:
    """Return the test set of ShareGPT4V: images with long captions, whose line breaks become spaces.

    Raises:
        ValueError: if the file is missing or malformed; the message names the entry.
        OSError: if a store cannot be reached.
    """
    cases = []
    for entry in read_entries(storage.join(found.path, _SHAREGPT4V), found.name, num_first=_NUM_ENTRIES):
        name = entry.file("image")
        caption = entry.get("conversations", _caption, "a list whose second object has a text in 'value'")
        cases.append(Case(key=name, views=(View(name),), texts=(caption.replace("\n", " "),)))
    return task_of(found, cases, found.path, score_retrieval)


def _view(entry: Entry, name: str) -> View:
    """Return an image by its file name without the extension, since the images are published in several formats."""
    file = entry.file(name)
    return View(file.rpartition(".")[0] or file)


def _names(value: Any) -> tuple[str, ...] | None:
    try:
        names = parse_json(value or "")
    except ValueError:
        return None
    return tuple(names) if isinstance(names, list) and names and all(map(file_name, names)) else None


def _caption(conversations: Any) -> str | None:
    try:
        caption = conversations[1]["value"]
    except (KeyError, IndexError, TypeError):
        return None
    return caption if isinstance(caption, str) else None


PAIRS = {"aro/vg_relation": "VG-Relation", "aro/vg_attribution": "VG-Attribution"}
"""Display names of the ARO tasks with swapped objects or attributes, by key."""
ORDERS = {"aro/coco_order": "COCO-Order", "aro/flickr30k_order": "Flickr30k-Order"}
"""Display names of the ARO tasks with shuffled words, by key."""
_FILES = {
    "aro/vg_relation": "visual_genome_relation.json",
    "aro/vg_attribution": "visual_genome_attribution.json",
    "aro/coco_order": "coco_karpathy_test.json",
    "aro/flickr30k_order": "flickr30k_test.json",
}
# Suite data sets that provide the captions if ARO's own file is missing.
_CAPTIONS = {
    "aro/coco_order": "retrieval/mscoco_2014_5k_test_image_text_retrieval",
    "aro/flickr30k_order": "retrieval/flickr_1k_test_image_text_retrieval",
}
# The metric excludes pairs of attributes with fewer cases.
_FEWEST_OF_A_PAIR = 25
_MOST_WORDS = 30
_MARKS = re.compile(r'[.!"()*#:;~]')
_SPACES = re.compile(r"\s{2,}")
# Relations left out of the metric: symmetric relations, where the swapped caption may be true too, and relations with
# few test cases. Source: Yuksekgonul et al. 2023, the notebook that reproduces the results.
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
    """Return VG-Relation or VG-Attribution: true captions against captions with two objects or attributes swapped.

    Raises:
        ValueError: if the annotation file or the folder of images is missing or malformed, or no group counts towards
            the metric; the message names the entry.
        OSError: if a store cannot be reached.
    """
    of_relations = found.key == "aro/vg_relation"
    by_image: dict[str, list[Case]] = {}
    for entry in read_entries(storage.join(found.path, _FILES[found.key]), found.name):
        attributes = () if of_relations else entry.texts("attributes", "two attributes", count=2)
        case = _pair(entry, entry.text("relation_name") if of_relations else "_".join(attributes))
        by_image.setdefault(case.views[0].image, []).append(case)
    cases = list(chain.from_iterable(by_image.values()))
    sizes = Counter(case.group for case in cases)
    if of_relations:
        counted = sorted(sizes.keys() - LEFT_OUT_RELATIONS)
    else:
        counted = sorted(group for group, size in sizes.items() if size >= _FEWEST_OF_A_PAIR)
    if not counted:
        raise ValueError(
            f"no group of {found.name} counts towards the metric: the cases test {', '.join(sorted(sizes)[:5])}; check "
            f"that the annotation file is the complete published file"
        )
    images = folder_or_zip(storage.join(found.path, "images"), found.name)
    return task_of(found, cases, images, partial(score_groups, counted=counted))


def open_orders(found: FoundTask, options: TaskOptions) -> ChoiceTask:
    """Return COCO-Order or Flickr30k-Order: captions against four shuffled versions.

    The captions come from ARO's own file, or else from the suite's data set next to the folder `aro`.

    Raises:
        ValueError: if captions or word orders are missing or malformed.
        OSError: if a store cannot be reached.
    """
    path = storage.join(found.path, f"{found.key.removeprefix('aro/')}.jsonl")
    head, *entries = read_entries(path, f"{found.name} (shuffled captions)")
    tagger = head.text("tagger")
    orders = {entry.text("caption"): entry.texts("orders", "four texts", count=len(PERTURBATIONS)) for entry in entries}
    benchmark, own = None, storage.join(found.path, _FILES[found.key])
    if storage.exists(own):
        images = _own_captions(found, own)
    else:
        place = data_set_folder(_CAPTIONS[found.key], found.path.rpartition("/")[0])
        benchmark = open_benchmark(place, allow_missing=options.allow_missing, rows=options.rows)
        if benchmark.kind != "retrieval":
            raise ValueError(f"{benchmark.name} has classes, but word orders need a retrieval data set with captions")
        images = []

    def load_cases(report: SkipReport) -> Iterator[CaseOrImage]:
        known = images if benchmark is None else _benchmark_captions(benchmark, report)
        for image, texts in known:
            for number, caption in enumerate(texts):
                key, true = f"{image.name}, caption {number}", normalize_caption(caption)
                if not true:
                    detail = f"{caption[:40]!r} contains no words"
                    report.add(Skip(reason="no_caption", key=key, shard=found.path, detail=detail))
                    continue
                if caption not in orders:
                    raise ValueError(
                        f"{path} has no word orders of {caption[:60]!r}; the file may be for different captions"
                    )
                false = map(normalize_caption, orders[caption])
                yield Case(key=key, views=(View(image.name),), texts=(true, *false))
            yield image

    return ChoiceTask(
        key=found.key,
        name=f"{found.name} (tagged by {tagger})",
        path=found.path,
        load_cases=load_cases,
        compute_metrics=score_orders,
        num_images=len(images) if benchmark is None else num_images(benchmark),
        benchmark=benchmark,
        orders=hash_of([tagger, orders]),
    )


def normalize_caption(caption: str) -> str:
    """Normalise a caption for the models: lower case, most punctuation removed, at most thirty words.

    True and shuffled captions are normalised alike, so that punctuation does not reveal the true caption. Commas and
    hyphens stay.
    """
    text = _SPACES.sub(" ", _MARKS.sub(" ", caption.lower())).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:_MOST_WORDS])


def _own_captions(found: FoundTask, file: str) -> list[tuple[CaseImage, tuple[str, ...]]]:
    """Return ARO's own images with their captions."""
    images = {}
    for entry in read_entries(file, found.name):
        name, texts = entry.file("image"), entry.texts("caption", "a list of captions")
        images[name] = (CaseImage(name=name, content=[storage.join(found.path, name)]), texts)
    for folder in {storage.join(found.path, name).rpartition("/")[0] for name in images}:
        folder_or_zip(folder, found.name)
    return list(images.values())


def _benchmark_captions(benchmark: Benchmark, report: SkipReport) -> Iterable[tuple[CaseImage, tuple[str, ...]]]:
    """Yield the images of a data set, each with a unique name, and their captions."""
    times: Counter[str] = Counter()
    for sample in benchmark.samples(report):
        times[sample.key] += 1
        # Several shards may have the same keys.
        name = sample.key if times[sample.key] == 1 else f"{sample.key} ({times[sample.key]})"
        yield CaseImage(name=name, content=sample.image), sample.captions


def _pair(entry: Entry, group: str) -> Case:
    image = entry.file("image_path")
    left, top = (entry.get(name, _number, "a number of pixels") for name in ("bbox_x", "bbox_y"))
    width, height = (entry.get(name, _size, "a positive number of pixels") for name in ("bbox_w", "bbox_h"))
    # Pillow rounds the coordinates of a crop in the same way.
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
