"""SugarCrepe, Winoground, WinoGAViL and long captions as they are published.

    sugarcrepe/
        add_att.json, ...      {"0": {"filename": "000000085329.jpg", "caption": "...", "negative_caption": "..."}, ...}
        val2017/               COCO's images, or val2017.zip as it is published
    winoground/
        examples.jsonl         {"caption_0": "...", "caption_1": "...", "image_0": "ex_0_img_0", "image_1": ...}
        images/                ex_0_img_0.png, ...; or images.zip as it is published
    winogavil/
        winogavil_dataset.csv  a case a row: ID, cue, candidates and associations, two JSON lists of names
        winogavil_images.zip   an image of every candidate, winogavil_images/NAME.jpg; or that folder, unpacked
    urban1k/
        caption/1.txt, ...     a caption each
        image/1.jpg, ...
    sharegpt4v/
        share-captioner_coco_lcs_sam_1246k_1107.json    its first 1,000 entries are the test set: {"image":
                               "sam/images/sa_1.jpg", "conversations": [{...}, {"value": "the caption"}]}
        sam/images/sa_1.jpg, ...

The files of Winoground and WinoGAViL are those of the data sets `facebook/winoground`, `data/`, and `nlphuji/winogavil`
on the Hugging Face hub, where their licences have to be agreed to before they can be fetched.

Source: Hsieh et al. 2023 (SugarCrepe, arXiv 2306.14610), Thrush et al. 2022 (Winoground, arXiv 2204.03162), Bitton et
al. 2022 (WinoGAViL, arXiv 2207.12576), Zhang et al. 2024 (Long-CLIP, arXiv 2403.15378), and the code that they are
published with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from mobileclip import storage
from mobileclip.data.images.limits import IMAGE_EXTENSIONS
from mobileclip.datasets.sources.shards import files_of_page
from mobileclip.evaluation.encoding import Features
from mobileclip.evaluation.tasks.annotations import Entry, file_name, folder_or_zip, read_entries
from mobileclip.evaluation.tasks.choices.scoring import score_associations, score_matches, score_pairs, score_retrieval
from mobileclip.evaluation.tasks.choices.task import Case, ChoiceTask, Scored, View, find_pictures
from mobileclip.evaluation.tasks.task import FoundTask, TaskOptions
from mobileclip.strict import parse_json, split_lines

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
"""Names in tables, by what the false caption changes."""


def task_of(found: FoundTask, cases: Iterable[Case], images: str, count: Callable[[Features], Scored]) -> ChoiceTask:
    """Return the task of cases that are known, about pictures in a folder or a zip file."""
    known = tuple(cases)
    if not known:
        raise ValueError(f"there is nothing of {found.name} in {found.path}")
    names = tuple(dict.fromkeys(view.picture for case in known for view in case.views))
    return ChoiceTask(
        key=found.key,
        name=found.name,
        path=found.path,
        ask=lambda _: chain(known, find_pictures(images, names)),
        count=count,
        num_pictures=len(names),
    )


def open_sugarcrepe(found: FoundTask, _: TaskOptions) -> ChoiceTask:
    """Return a part of SugarCrepe: a true caption against one that is as fluent and not true.

    Raises:
        ValueError: if the captions or the images are missing or malformed; the message says which entry.
        OSError: if a store cannot be reached.

    Differs: the public code calls equal scores wrong, which no score but of a collapsed model is.
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
    """Return Winoground, or what has its form: two pictures and two captions of the same words, to be matched.

    Raises:
        ValueError: if the captions or the images are missing or malformed; the message says which line.
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
    """Return WinoGAViL: a cue, and five to twelve images, some of which people chose for it.

    Raises:
        ValueError: if the table or the images are missing, or a row is malformed; the message says which line.
        OSError: if a store cannot be reached.
    """
    root = files_of_page(found.path)
    cases: dict[str, Case] = {}
    for entry in read_entries(storage.join(root, "winogavil_dataset.csv"), found.name):
        key, cue = entry.text("ID").strip(), entry.text("cue").strip().lower()
        candidates, chosen = (
            entry.get(name, _names, "a JSON list of names of images") for name in ("candidates", "associations")
        )
        right = tuple(place for place, name in enumerate(candidates) if name in chosen)
        if not right:
            raise ValueError(f"{entry.where}: none of the candidates is among the associations")
        if key in cases:
            raise ValueError(f"{entry.where}: ID {key!r} comes twice")
        prompt = f"{'An' if cue[0] in 'aeiou' else 'A'} {cue}"
        cases[key] = Case(key=key, views=tuple(map(View, candidates)), texts=(prompt,), right=right)
    images = folder_or_zip(storage.join(root, "winogavil_images"), found.name)
    return task_of(found, cases.values(), images, score_associations)


def open_urban1k(found: FoundTask, _: TaskOptions) -> ChoiceTask:
    """Return Urban-1k, having read its captions; of each, the first line, as the public code reads it.

    Raises:
        ValueError: if captions or pictures are missing; the message names the first.
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
            raise ValueError(f"{place} has no picture beside it: there is no image/{key}.jpg")
        text = storage.read_bytes(place, limit=_MAX_TEXT_BYTES).decode("utf-8-sig", "replace")
        cases.append(Case(key=key, views=(View(images[key]),), texts=((split_lines(text) or [""])[0],)))
    return task_of(found, cases, found.path, score_retrieval)


def open_sharegpt4v(found: FoundTask, _: TaskOptions) -> ChoiceTask:
    """Return ShareGPT4V's test set, having read its captions, line breaks as blanks.

    Raises:
        ValueError: if the file is missing or malformed; the message says which entry.
        OSError: if a store cannot be reached.
    """
    cases = []
    for entry in read_entries(storage.join(found.path, _SHAREGPT4V), found.name, num_first=_NUM_ENTRIES):
        name = entry.file("image")
        caption = entry.get("conversations", _caption, "two, the second with a text as value")
        cases.append(Case(key=name, views=(View(name),), texts=(caption.replace("\n", " "),)))
    return task_of(found, cases, found.path, score_retrieval)


def _view(entry: Entry, name: str) -> View:
    """Return the picture of a file's name; whatever its extension, as pictures are published in several."""
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
