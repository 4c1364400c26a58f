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
from mobileclip.evaluation.data import Benchmark, fingerprint, hash_of, open_benchmark
from mobileclip.evaluation.features import Features, Session
from mobileclip.evaluation.metrics import Hits, require_embeddings
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.spec import TaskOptions
from mobileclip.evaluation.suite import suite_entry
from mobileclip.evaluation.tasks.task import FoundTask, Task
from mobileclip.evaluation.tasks.zero_shot import score_hits

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Penalties that are tried, the strongest first: a fit starts where the one before ended."""

_MOST_STEPS, _HISTORY = 1000, 10


@attrs.frozen(kw_only=True, eq=False)
class LinearProbe:
    """A fitted classifier: `logits = standardized(image) weight^T + bias`.

    Shape:
        weight: `(classes, dim)`; bias: `(classes,)`.

    Args:
        weight: weight of the unit-length embeddings times the root of their dim.
        bias: bias of every class.
        penalty: that it was fitted with.
    """

    weight: Tensor
    bias: Tensor
    penalty: float

    def logits(self, image: Tensor) -> Tensor:
        """Return the logits of the classes for each image.

        Shape:
            image: `(images, dim)`; result: `(images, classes)`.
        """
        return F.linear(_scaled(image), self.weight, self.bias)


def fit_linear_probe(
    image: Tensor, labels: Tensor, *, num_classes: int, penalty: float, start: LinearProbe | None = None
) -> LinearProbe:
    """Return the classifier of the lowest loss.

    `mean cross-entropy + penalty / 2 |weight|^2`, by L-BFGS, until its gradient is gone: as scikit-learn's logistic
    regression with `C = 1 / (penalty * images)`.

    Shape:
        image: `(images, dim)`; labels: `(images,)`.

    Args:
        image: embeddings, brought to unit length here.
        labels: index of each image's class.
        num_classes: classes to choose from.
        penalty: above zero.
        start: where to begin, such as what another penalty gave; zeros without.

    Raises:
        ValueError: if an embedding is not finite, or the penalty is not above zero.
    """
    require_embeddings("image", image)
    if penalty <= 0:
        raise ValueError(f"penalty is {penalty}, expected a number above zero")
    scaled = _scaled(image)
    weight = torch.zeros(num_classes, image.shape[1]) if start is None else start.weight.clone()
    bias = torch.zeros(num_classes) if start is None else start.bias.clone()
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=_MOST_STEPS,
        history_size=_HISTORY,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(scaled, weight, bias), labels) + penalty / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.inference_mode(mode=False), torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return LinearProbe(weight=weight.detach(), bias=bias.detach(), penalty=penalty)


def chosen_linear_probe(
    image: Tensor,
    labels: Tensor,
    held_out: Tensor,
    *,
    num_classes: int,
    penalties: Sequence[float] = STRENGTHS,
) -> LinearProbe:
    """Return the classifier of all images, with the penalty that is best where it was not fitted.

    Shape:
        image: `(images, dim)`; labels, held_out: `(images,)`.

    Args:
        image: embeddings, brought to unit length here.
        labels: index of each image's class.
        held_out: boolean: which images decide between penalties, after a fit to the others. Where these are none, or
            all, the middle one is taken.
        num_classes: classes to choose from.
        penalties: the strongest first; of equally good ones, the strongest is taken.

    Source: Radford et al. 2021, appendix A.3, which chooses the penalty on a validation set and fits again with it.
    """
    best = penalties[len(penalties) // 2]
    if 0 < int(held_out.sum()) < len(held_out):
        fitted, most_right = None, -1.0
        for penalty in penalties:
            fitted = fit_linear_probe(
                image[~held_out], labels[~held_out], num_classes=num_classes, penalty=penalty, start=fitted
            )
            right = float((fitted.logits(image[held_out]).argmax(dim=1) == labels[held_out]).float().mean())
            if right > most_right:
                best, most_right = penalty, right
    return fit_linear_probe(image, labels, num_classes=num_classes, penalty=best)


def _scaled(image: Tensor) -> Tensor:
    scaled: Tensor = F.normalize(image.float(), dim=-1) * image.shape[1] ** 0.5
    return scaled


TRAIN = "train"
_TESTS = ("test", "val", "validation")
_NUM_FOLDS = 5


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

    def score(self, features: Features) -> DatasetResult:
        """Return the accuracy of the classifier, by the metrics of zero-shot classification."""
        labels = _labels(features.labels, self.test.class_names, self.test.class_names)
        if self.train is None:
            logits = self._crossed(features.image, labels, features.keys)
        else:
            known = _labels(features.tensors["train_labels"], self.train.class_names, self.test.class_names)
            fitted = self._fitted(features.tensors["train_image"], known, features.header["train_keys"])
            logits = fitted.logits(features.image)
        hits = Hits.of(logits, labels)
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
        path: path of the folder that holds them; a URL holds none.
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
