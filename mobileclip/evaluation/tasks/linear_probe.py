"""Linear probes: a logistic regression on a model's image embeddings, without texts."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from mobileclip import storage
from mobileclip.data.skips import SkipReport
from mobileclip.datasets.sources.shards import files_of_page
from mobileclip.evaluation.benchmark import Benchmark, fingerprint, hash_of, open_benchmark
from mobileclip.evaluation.encoding import Features
from mobileclip.evaluation.metrics.classification import Hits
from mobileclip.evaluation.metrics.linear_probe import LinearProbe, chosen_linear_probe
from mobileclip.evaluation.metrics.ranking import hit_probability
from mobileclip.evaluation.session import Session
from mobileclip.evaluation.suite import suite_entry
from mobileclip.evaluation.tasks.scoring import score_hits
from mobileclip.evaluation.tasks.task import Evaluation, FoundTask, Task, TaskOptions

TRAIN = "train"
_TESTS = ("test", "val", "validation")
_NUM_FOLDS = 5
_FEWEST_FOR_TOP5 = 5


@attrs.frozen(kw_only=True)
class LinearProbeTask(Task):
    """A classifier that is fitted to one part of a data set and tested on another.

    Without a part to fit to, every fifth of the images is classified by what was fitted to the other four; which image
    is in which is said by its key.

    Args:
        key: what results call it.
        name: what tables call it.
        test: the data set.
        train: what the classifier is fitted to; its classes are among those of the test set, or it is None.

    Raises:
        ValueError: if a data set has captions, or the two have other classes.
    """

    key: str
    name: str
    test: Benchmark
    train: Benchmark | None = None

    def __attrs_post_init__(self) -> None:
        for benchmark in (self.test, self.train):
            if benchmark is not None and benchmark.kind != "classification":
                raise ValueError(f"{self.name}: {benchmark.name} has captions; a linear probe needs classes")
        if self.train is not None and (unknown := set(self.test.class_names) ^ set(self.train.class_names)):
            raise ValueError(
                f"{self.name}: {min(unknown)!r} is a class of {self.train.name} or of {self.test.name} alone; "
                f"both need the same classes"
            )

    def content(self) -> str:
        """Return a hash of the shards of both."""
        train = None if self.train is None else fingerprint(self.train)
        return hash_of(["linear probe", fingerprint(self.test), train, list(self.test.class_names)])

    def features(self, session: Session) -> Features:
        """Return the embeddings of the pictures of both; those of the training set begin with `train_`."""
        test = session.pictures(self.test)
        if self.train is None:
            return test
        train = session.pictures(self.train)
        report = SkipReport(num_read=test.report.num_read, log=False)
        for one in (test.report, train.report):
            report.extend(skip for skips in one.named.values() for skip in skips)
        return Features(
            tensors={**test.tensors, **{f"train_{name}": tensor for name, tensor in train.tensors.items()}},
            header={**test.header, "train_keys": train.header["keys"]},
            report=report,
            is_kept=test.is_kept or train.is_kept,
        )

    def score(self, features: Features) -> Evaluation:
        """Return the accuracy of the classifier, by the metrics of zero-shot classification."""
        labels = _labels(features.labels, self.test.class_names, self.test.class_names)
        if self.train is None:
            logits = self._crossed(features.image, labels, features.keys)
        else:
            known = _labels(features.tensors["train_labels"], self.train.class_names, self.test.class_names)
            fitted = self._fitted(features.tensors["train_image"], known, features.header["train_keys"])
            logits = fitted.logits(features.image)
        right = F.one_hot(labels, len(self.test.class_names)).bool()
        hits = Hits(
            predicted=logits.argmax(dim=1),
            top1=hit_probability(logits, right, 1).cpu(),
            top5=hit_probability(logits, right, 5).cpu(),
        )
        entry = suite_entry(self.test.name)
        by_class = entry is not None and entry.main_metric == "mean_per_class_recall"
        main = "mean_per_class_recall" if by_class else "acc1"
        return score_hits(
            features, hits, labels, self.test.class_names, key=self.key, name=self.name, main=main, special={}
        )

    def _fitted(self, image: Tensor, labels: Tensor, keys: Sequence[str]) -> LinearProbe:
        held_out = _fold(keys, "held out") == 0
        return chosen_linear_probe(image, labels, held_out, num_classes=len(self.test.class_names))

    def _crossed(self, image: Tensor, labels: Tensor, keys: Sequence[str]) -> Tensor:
        """Return the logits of every image from a classifier that was not fitted to it."""
        folds = _fold(keys, "fold")
        logits = torch.zeros(len(image), len(self.test.class_names))
        for fold in sorted(set(folds.tolist())):
            inside = folds == fold
            if bool(inside.all()):
                raise ValueError(f"{self.name}: {len(image)} images are too few to fit to some and test on others")
            others = [key for key, own in zip(keys, inside.tolist(), strict=True) if not own]
            logits[inside] = self._fitted(image[~inside], labels[~inside], others).logits(image[inside])
        return logits


def open_linear_probe(found: FoundTask, options: TaskOptions) -> LinearProbeTask:
    """Return the linear probe of a data set.

    It is fitted to `train` and tested on `test` where both are there: splits of the public layout, or folders with any
    data sets (`val` and `validation` are tests, too).

    Raises:
        ValueError: if there is no data set, or it has captions.
        OSError: if a store cannot be reached.
    """
    path, train = found.path, None
    if storage.exists(storage.join(files_of_page(path), f"{TRAIN}/nshards.txt")):
        train = open_benchmark(path, split=TRAIN, allow_missing=options.allow_missing, rows=options.rows)
    elif parts := split_folders(path):
        train = open_benchmark(parts[0], allow_missing=options.allow_missing, rows=options.rows)
        path = parts[1]
    test = open_benchmark(path, allow_missing=options.allow_missing, rows=options.rows)
    return LinearProbeTask(key=found.key, name=found.name, test=test, train=train)


def split_folders(path: str) -> tuple[str, str] | None:
    """Return the folders of a data set that is to be fitted to and of one that is to be tested on, if both are there.

    Args:
        path: of the folder that holds them; a URL holds none.
    """
    if storage.is_remote(path):
        return None
    test = next((Path(path, name) for name in _TESTS if Path(path, name).is_dir()), None)
    train = Path(path, TRAIN)
    return (str(train), str(test)) if test is not None and train.is_dir() else None


def _fold(keys: Sequence[str], what: str) -> Tensor:
    """Return which fifth each image is in, by its key alone."""
    drawn = (int.from_bytes(sha256(f"{what} {key}".encode()).digest()[:4], "big") for key in keys)
    return torch.tensor([number % _NUM_FOLDS for number in drawn])


def _labels(labels: Tensor | None, names: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """Return the labels counted by other names, in another order."""
    assert labels is not None, "a data set of classes has labels"
    place = {name: index for index, name in enumerate(wanted)}
    return torch.tensor([place[name] for name in names])[labels]
