"""Names of the evaluation suites, and the 38 data sets of the papers' average, each with its main metric."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import attrs

from mobileclip import storage

SuiteName = Literal["quick", "imagenet", "retrieval", "multilingual", "aro", "sugarcrepe", "full"]


@attrs.frozen
class SuiteEntry:
    """One of the 38 data sets of the full suite.

    Args:
        key: key of the data set in results, such as `vtab/pets`.
        name: name of the data set in tables.
        num_images: number of images or queries in the test split, for estimates of confidence intervals.
        main_metric: name of the main metric of the data set.
    """

    key: str
    name: str
    num_images: int
    main_metric: str = "acc1"


_PER_CLASS, _RECALL = "mean_per_class_recall", "mean_recall@1"

# Source: DataComp (Gadre et al. 2023), section 3.5 and list of tasks; for Flickr30k, the test split of 1,000 images,
# as in the published results of MobileCLIP.
SUITE: tuple[SuiteEntry, ...] = (
    SuiteEntry("vtab/caltech101", "Caltech-101", 6_085, _PER_CLASS),
    SuiteEntry("cifar10", "CIFAR-10", 10_000),
    SuiteEntry("vtab/cifar100", "CIFAR-100", 10_000),
    SuiteEntry("vtab/clevr_count_all", "CLEVR Counts", 15_000),
    SuiteEntry("vtab/clevr_closest_object_distance", "CLEVR Distance", 15_000),
    SuiteEntry("country211", "Country211", 21_100),
    SuiteEntry("vtab/dtd", "Describable Textures", 1_880),
    SuiteEntry("vtab/eurosat", "EuroSAT", 5_400),
    SuiteEntry("fgvc_aircraft", "FGVC Aircraft", 3_333, _PER_CLASS),
    SuiteEntry("food101", "Food-101", 25_250),
    SuiteEntry("gtsrb", "GTSRB", 12_630),
    SuiteEntry("imagenet1k", "ImageNet 1k", 50_000),
    SuiteEntry("imagenet_sketch", "ImageNet Sketch", 50_889),
    SuiteEntry("imagenetv2", "ImageNet v2", 10_000),
    SuiteEntry("imagenet-a", "ImageNet-A", 7_500),
    SuiteEntry("imagenet-o", "ImageNet-O", 2_000),
    SuiteEntry("imagenet-r", "ImageNet-R", 30_000),
    SuiteEntry("vtab/kitti_closest_vehicle_distance", "KITTI Vehicle Distance", 711),
    SuiteEntry("mnist", "MNIST", 10_000),
    SuiteEntry("objectnet", "ObjectNet", 18_574),
    SuiteEntry("vtab/flowers", "Oxford Flowers-102", 6_149, _PER_CLASS),
    SuiteEntry("vtab/pets", "Oxford-IIIT Pet", 3_669, _PER_CLASS),
    SuiteEntry("voc2007", "Pascal VOC 2007", 14_976),
    SuiteEntry("vtab/pcam", "PatchCamelyon", 32_768),
    SuiteEntry("renderedsst2", "Rendered SST2", 1_821),
    SuiteEntry("vtab/resisc45", "RESISC45", 6_300),
    SuiteEntry("cars", "Stanford Cars", 8_041),
    SuiteEntry("stl10", "STL-10", 8_000),
    SuiteEntry("sun397", "SUN397", 108_754),
    SuiteEntry("vtab/svhn", "SVHN", 26_032),
    SuiteEntry("retrieval/flickr_1k_test_image_text_retrieval", "Flickr", 1_000, _RECALL),
    SuiteEntry("retrieval/mscoco_2014_5k_test_image_text_retrieval", "MSCOCO", 5_000, _RECALL),
    SuiteEntry("misc/winogavil", "WinoGAViL", 3_563, "jaccard_score_10-12"),
    SuiteEntry("wilds/iwildcam", "iWildCam", 42_791, "F1-macro_all"),
    SuiteEntry("wilds/camelyon17", "Camelyon17", 85_054),
    SuiteEntry("wilds/fmow", "FMoW", 22_108, "acc_worst_region"),
    SuiteEntry("fairness/dollar_street", "Dollar Street", 3_503, "acc_top5_wg"),
    SuiteEntry("fairness/geode", "GeoDE", 12_488, "acc_wg"),
)


_HUB = "https://huggingface.co/datasets"
# CLIP_benchmark publishes the data sets with captions, DataComp the data sets with classes.
_RETRIEVAL_FOLDERS = {
    "retrieval/flickr_1k_test_image_text_retrieval": "flickr30k",
    "retrieval/mscoco_2014_5k_test_image_text_retrieval": "mscoco_captions",
}


def suite_entry(name: str) -> SuiteEntry | None:
    """Return the entry of a data set in the full suite; None if the data set is not in the suite.

    Args:
        name: name of the data set's folder, without `wds_` and `_test`; see `folder_names`.
    """
    return next((entry for entry in SUITE if name in folder_names(entry.key)), None)


def key_and_title(name: str) -> tuple[str, str]:
    """Return the key and display name of a data set; each is `name` if the data set is not in the full suite.

    Args:
        name: name of the data set's folder, without `wds_` and `_test`.
    """
    entry = suite_entry(name)
    return (entry.key, entry.name) if entry else (name, name)


def folder_names(key: str) -> tuple[str, ...]:
    """Return the possible folder names of a data set, the published name first, without `wds_` and `_test`.

    A folder name is the key with `/` replaced by `-`. Published names omit the prefix `fairness/`, and the
    published folders of retrieval data sets have names that differ from the key.
    """
    published = _RETRIEVAL_FOLDERS.get(key, key.removeprefix("fairness/").replace("/", "-"))
    return tuple(dict.fromkeys((published, key.replace("/", "-"))))


def published_page(key: str) -> str:
    """Return the URL of the Hugging Face hub page with the WebDataset shards of a suite data set."""
    name = folder_names(key)[0]
    if key in _RETRIEVAL_FOLDERS:
        return f"{_HUB}/clip-benchmark/wds_{name}/tree/main"
    return f"{_HUB}/djghosh/wds_{name}_test/tree/main"


def data_set_folder(key: str, data: str | None) -> str:
    """Return the location of a suite data set: the folder in `data`, or the hub page if `data` is None.

    Args:
        key: key of the data set, such as `vtab/pets`.
        data: folder or URL that holds data sets, or a pattern with `{name}`.

    Raises:
        ValueError: if a local folder does not contain the data set; the message lists the folder names tried.
    """
    if data is None:
        return published_page(key)
    names = folder_names(key)
    if "{name}" in data:
        return data.replace("{name}", names[0])
    folders = [storage.join(data, folder) for name in names for folder in (f"wds_{name}_test", f"wds_{name}", name)]
    if storage.is_remote(data):
        return folders[0]
    found = next((folder for folder in folders if Path(folder).is_dir()), None)
    if found is None:
        looked = ", ".join(os.path.basename(folder) for folder in folders)  # noqa: PTH119  names, not paths
        raise ValueError(
            f"{key} is not in {data}: none of the folders {looked} exists; download the data set from "
            f"{published_page(key)}"
        )
    return found


def suite_sizes() -> dict[str, int]:
    """Return the number of images of each of the 38 data sets of the full suite, by key."""
    return {entry.key: entry.num_images for entry in SUITE}
