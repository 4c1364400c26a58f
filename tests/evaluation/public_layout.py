"""Data sets in the public layout, as tests need them."""

import io
import shutil

import numpy as np
from PIL import Image

from mobileclip.data.shards.files import write_shard_members
from mobileclip.evaluation import open_benchmark

EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


def write_benchmark(folder, samples, *, class_names=(), templates=(), samples_per_shard=250):
    """Write samples with labels or captions, and return the data set as it is read again."""
    samples = list(samples)
    starts = range(0, len(samples), samples_per_shard)
    files = {
        "dataset_type.txt": ["classification" if class_names else "retrieval"],
        "classnames.txt": class_names,
        "zeroshot_classification_templates.txt": [one.replace("{}", "{c}") for one in templates],
        "test/nshards.txt": [str(len(starts))],
    }
    shutil.rmtree(folder / "test", ignore_errors=True)
    (folder / "test").mkdir(parents=True)
    for name, lines in files.items():
        if lines:
            (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for number, start in enumerate(starts):
        members = [(one.key, _members(one)) for one in samples[start : start + samples_per_shard]]
        write_shard_members(folder / "test" / f"{number}.tar", members)
    return open_benchmark(folder)


def _members(sample):
    try:
        extension = EXTENSIONS[Image.open(io.BytesIO(sample.image)).format]
    except OSError:  # a broken picture is data too
        extension = "jpg"
    members = {extension: sample.image}
    members |= {"txt": "\n".join(sample.captions).encode()} if sample.captions else {"cls": b"%d" % sample.label}
    if sample.metadata is not None:
        stream = io.BytesIO()
        np.save(stream, np.array(sample.metadata, np.int64))
        members["npy"] = stream.getvalue()
    return members
