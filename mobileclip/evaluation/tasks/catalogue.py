"""Suites and data sets that `mobileclip eval` accepts by key, and the locations of their data."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import get_args

import attrs

from mobileclip import storage
from mobileclip.datasets.sources.opening import is_data_path, require_data_set
from mobileclip.encoders.checkpoints import packaged
from mobileclip.encoders.checkpoints.published import is_export
from mobileclip.evaluation.data import benchmark_name, open_benchmark
from mobileclip.evaluation.spec import TaskOptions
from mobileclip.evaluation.suite import SUITE, SuiteName, data_set_folder, key_and_title
from mobileclip.evaluation.tasks.choice_files import (
    ORDERS,
    PAIRS,
    PREFIX,
    SUGARCREPE,
    open_orders,
    open_pairs,
    open_sharegpt4v,
    open_sugarcrepe,
    open_urban1k,
    open_winogavil,
    open_winoground,
)
from mobileclip.evaluation.tasks.multilingual import open_crossmodal3600, open_languages, open_xtd10
from mobileclip.evaluation.tasks.probe import open_linear_probe, split_folders
from mobileclip.evaluation.tasks.task import FoundTask, Task, TaskEntry, evaluation_tasks
from mobileclip.evaluation.tasks.zero_shot import ZeroShotTask, require_metric
from mobileclip.interop.folder import WEIGHTS
from mobileclip.registry import nearest

PROBE = "probe:"
"""Prefix that selects a linear probe on a data set with classes, instead of zero-shot classification."""

NOT_EVALUATED = {
    "fairness/fairface": "the release lists it without a result",
    "fairness/utkface": "the release lists it without a result",
    "longclip/sharegpt4v-llava15k": "the 15,295 pairs of ShareGPT4V behind the released results are not published",
}
"""Data sets in the release's result tables that this library does not evaluate, with the reasons."""

WINOGAVIL = "misc/winogavil"
_WHERE = {
    "aro": "get the files from https://github.com/mertyg/vision-language-models-are-bows",
    "sugarcrepe": "get the captions from https://github.com/RAIVNLab/sugar-crepe, and put COCO's val2017 next to them",
    "winoground": "request the data at https://huggingface.co/datasets/facebook/winoground",
    "urban1k": "get the data from https://huggingface.co/datasets/BeichenZhang/Urban1k",
    "sharegpt4v": "get the captions from https://huggingface.co/datasets/Lin-Chen/ShareGPT4V and the images from SA-1B",
    "xtd10": (
        "get the captions from https://github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10, and the images "
        "from COCO"
    ),
    "xm3600": "get the data from https://google.github.io/crossmodal-3600",
    "winogavil": "request the data at https://huggingface.co/datasets/nlphuji/winogavil",
}

SUITES: dict[SuiteName, tuple[str, ...]] = {
    "quick": (
        "vtab/pets",
        "vtab/dtd",
        "fgvc_aircraft",
        "renderedsst2",
        "vtab/kitti_closest_vehicle_distance",
        "retrieval/flickr_1k_test_image_text_retrieval",
    ),
    "imagenet": (
        "imagenet1k",
        "imagenetv2",
        "imagenet-a",
        "imagenet-r",
        "imagenet_sketch",
        "imagenet-o",
        "objectnet",
    ),
    "retrieval": (
        "retrieval/flickr_1k_test_image_text_retrieval",
        "retrieval/mscoco_2014_5k_test_image_text_retrieval",
    ),
    "multilingual": ("multilingual/xtd10", "multilingual/crossmodal3600"),
    "aro": (*PAIRS, *ORDERS),
    "sugarcrepe": tuple(f"{PREFIX}{part}" for part in SUGARCREPE),
    "full": tuple(entry.key for entry in SUITE),
}
"""Data set keys by suite. `quick` has 12,414 images of several kinds, `imagenet` has ImageNet and its variants for
robustness, and `full` has the 38 data sets of the average in the papers."""


def suite_tasks(suite: SuiteName, data: str | None = None) -> tuple[FoundTask, ...]:
    """Return the tasks of a suite.

    Args:
        suite: name of the suite.
        data: location of the data sets; see `find_task`.

    Raises:
        ValueError: if the suite is unknown, or the data of a task are missing; see `find_task`.
    """
    if suite not in get_args(SuiteName):
        raise ValueError(f"there is no suite {suite!r}; expected one of {', '.join(get_args(SuiteName))}")
    return tuple(find_task(key, data) for key in SUITES[suite])


def find_task(name: str, data: str | None = None) -> FoundTask:
    """Return the task with this name; check that the data exist, but do not read the data.

    Args:
        name: key of a task, such as `vtab/pets` or `aro/coco_order`, or path of any data set, see `open_benchmark`. The
            prefix `probe:` selects a linear probe on the data set.
        data: folder or URL that holds the data sets in folders such as `wds_vtab-pets_test`, `winogavil` for WinoGAViL
            and `aro` for ARO; or a pattern with `{name}` in place of a name such as `vtab-pets`. None for the Hugging
            Face hub, which has the data sets of the full suite except WinoGAViL.

    Raises:
        ValueError: if the data set does not exist or its data are missing; the message lists the locations searched.
    """
    if name.startswith(PROBE):
        return _find_probe(name.removeprefix(PROBE), data)
    if name in evaluation_tasks:
        return evaluation_tasks[name].find(name, data)
    if is_data_path(name):
        require_data_set(name)
        key, title = key_and_title(benchmark_name(name))
        return FoundTask(key=key, name=title, path=name, opener=open_zero_shot)
    if name in NOT_EVALUATED:
        raise ValueError(f"{name} is not evaluated: {NOT_EVALUATED[name]}")
    hint = nearest(name, evaluation_tasks, otherwise="expected a key such as 'vtab/pets' or 'aro/coco_order'")
    raise ValueError(f"there is no data set {name!r}: the name is neither a key nor the path of a data set; {hint}")


def open_zero_shot(found: FoundTask, options: TaskOptions) -> Task:
    """Return the zero-shot task of a data set, or the multilingual task if each caption states its language.

    Raises:
        ValueError: if the data set does not exist, or its main metric is not available; see `require_metric`.
        OSError: if a store cannot be reached.
    """
    benchmark = open_benchmark(found.path, allow_missing=options.allow_missing, rows=options.rows)
    require_metric(benchmark)
    languages = open_languages(found, benchmark) if benchmark.kind == "retrieval" else None
    return languages or ZeroShotTask(benchmark=benchmark)


def is_data_set(name: str) -> bool:
    """Return whether a command-line argument is the key or the path of a data set, rather than a model."""
    if name.startswith(PROBE):
        return True
    is_model = (
        packaged(name) is not None or is_export(name) or any(Path(name, weights).is_file() for weights in WEIGHTS)
    )
    return name in evaluation_tasks or name in NOT_EVALUATED or (is_data_path(name) and not is_model)


def _find_probe(name: str, data: str | None) -> FoundTask:
    if split_folders(name):
        own = benchmark_name(name)
        return FoundTask(key=f"probe/{own}", name=f"{own}, linear probe", path=name, opener=open_linear_probe)
    found = find_task(name, data)
    if found.opener is not open_zero_shot:
        raise ValueError(f"{found.name} has no classes; a linear probe needs a data set with labels")
    return attrs.evolve(found, key=f"probe/{found.key}", name=f"{found.name}, linear probe", opener=open_linear_probe)


def _beside(folder: str, key: str, data: str | None) -> str:
    if data is None or "{name}" in data:
        raise ValueError(
            f"{key} needs `data` to be the folder that contains {folder}/, not the hub or a pattern; {_WHERE[folder]}"
        )
    path = storage.join(data, folder)
    if not storage.is_remote(path) and not Path(path).is_dir():
        raise ValueError(f"{key} is not in {data}: there is no folder {folder}; {_WHERE[folder]}")
    return path


def _known() -> Iterator[tuple[str, TaskEntry]]:
    for entry in SUITE:
        if entry.key != WINOGAVIL:
            yield entry.key, TaskEntry(name=entry.name, place=data_set_folder, opener=open_zero_shot)
    for key, name, folder, opener in (
        *((key, name, "aro", open_pairs) for key, name in PAIRS.items()),
        *((key, name, "aro", open_orders) for key, name in ORDERS.items()),
        *((f"{PREFIX}{part}", name, "sugarcrepe", open_sugarcrepe) for part, name in SUGARCREPE.items()),
        (WINOGAVIL, "WinoGAViL", "winogavil", open_winogavil),
        ("multilingual/xtd10", "XTD10", "xtd10", open_xtd10),
        ("multilingual/crossmodal3600", "Crossmodal-3600", "xm3600", open_crossmodal3600),
        ("comp/winoground", "Winoground", "winoground", open_winoground),
        ("longclip/urban1k", "Urban-1k", "urban1k", open_urban1k),
        ("longclip/sharegpt4v-1k", "ShareGPT4V-1k", "sharegpt4v", open_sharegpt4v),
    ):
        yield key, TaskEntry(name=name, place=partial(_beside, folder), opener=opener)


for _key, _entry in _known():
    evaluation_tasks.add(_key, _entry)
