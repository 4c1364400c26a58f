"""Data sets in the public layout, as tests need them."""

import shutil

from mobileclip.evaluation import open_benchmark
from tests.data.made_samples import write_layout


def write_benchmark(folder, samples, *, class_names=(), templates=(), samples_per_shard=250):
    """Write samples with labels or captions, and return the data set as it is read again."""
    members = [(one.key, _members(one)) for one in samples]
    shards = [dict(members[start : start + samples_per_shard]) for start in range(0, len(members), samples_per_shard)]
    templates = [one.replace("{}", "{c}") for one in templates]
    shutil.rmtree(folder / "test", ignore_errors=True)
    kind = "classification" if class_names else "retrieval"
    return open_benchmark(write_layout(folder, *shards, kind=kind, classnames=class_names, templates=templates))


def _members(sample):
    labelled = {"txt": "\n".join(sample.captions).encode()} if sample.captions else {"cls": b"%d" % sample.label}
    return {"png" if sample.image.startswith(b"\x89PNG") else "jpg": sample.image, **labelled}
