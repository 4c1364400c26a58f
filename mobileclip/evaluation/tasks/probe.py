"""Linear probes: logistic regression on a model's image embeddings, without texts."""

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
"""L2 penalties to try, the strongest first; each fit starts from the result of the previous fit."""

_MOST_STEPS, _HISTORY = 1000, 10


@attrs.frozen(kw_only=True, eq=False)
class LinearProbe:
    """A fitted classifier: `logits = scaled(image) weight^T + bias`.

    Shape:
        weight: `(classes, dim)`; bias: `(classes,)`.

    Args:
        weight: weights for embeddings scaled to length `sqrt(dim)`.
        bias: bias of each class.
        penalty: L2 penalty used for the fit.
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
    """Fit a linear classifier to image embeddings with L-BFGS.

    The loss is `mean cross-entropy + penalty / 2 |weight|^2`. L-BFGS runs until the gradient vanishes, for at most 1000
    steps. The result equals scikit-learn's logistic regression with `C = 1 / (penalty * images)`.

    Shape:
        image: `(images, dim)`; labels: `(images,)`.

    Args:
        image: image embeddings, normalised or not.
        labels: class index of each image.
        num_classes: number of classes.
        penalty: L2 penalty, greater than 0.
        start: classifier to start from, such as the classifier for a different penalty; None to start from zeros.

    Raises:
        ValueError: if an embedding is not finite, or the penalty is not positive.
    """
    require_embeddings("image", image)
    if penalty <= 0:
        raise ValueError(f"penalty must be greater than 0, got {penalty}")
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
    """Choose the penalty with the best accuracy on held-out images, and fit a classifier to all images.

    Shape:
        image: `(images, dim)`; labels, held_out: `(images,)`.

    Args:
        image: image embeddings, normalised or not.
        labels: class index of each image.
        held_out: boolean mask of the images that measure the accuracy of each penalty; classifiers for this comparison
            are fitted to all other images. If the mask is all false or all true, the function uses the middle penalty.
        num_classes: number of classes.
        penalties: L2 penalties to try, the strongest first; among equally good penalties, the function uses the
            strongest.

    Source: Radford et al. 2021, appendix A.3: choice of the penalty on a validation set, then a fit to all images.
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
    """A linear classifier fitted to one split of a data set and tested on another split.

    Without a training split, the task uses five-fold cross-validation: each fifth of the images is classified by a
    classifier fitted to the other four fifths. The fold of an image follows from a hash of the image's key.

    Args:
        key: key of the task in results.
        name: name of the task in tables.
        test: data set to test the classifier on.
        train: data set to fit the classifier to, with the class names of `test`; None for cross-validation.

    Raises:
        ValueError: if a data set has captions, or the two data sets have different classes.
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
                f"{self.name}: the class {min(unknown)!r} is in only one of {self.train.name} and {self.test.name}; "
                f"a probe needs data sets with the same classes"
            )

    def content(self) -> str:
        """Return a hash of the test and training data."""
        train = None if self.train is None else fingerprint(self.train)
        return hash_of(["linear probe", fingerprint(self.test), train, list(self.test.class_names)])

    def features(self, session: Session) -> Features:
        """Return the image embeddings for test and training; names of training tensors begin with `train_`."""
        test = session.image_features(self.test)
        if self.train is None:
            return test
        train = session.image_features(self.train)
        report = SkipReport(num_read=test.report.num_read, log=False)
        for one in (test.report, train.report):
            report.extend(skip for skips in one.named.values() for skip in skips)
        return Features(
            tensors={**test.tensors, **{f"train_{name}": tensor for name, tensor in train.tensors.items()}},
            header={**test.header, "train_keys": train.header["keys"]},
            report=report,
            from_cache=test.from_cache or train.from_cache,
        )

    def score(self, features: Features) -> DatasetResult:
        """Return the metrics of the fitted classifier, under the same names as for zero-shot classification."""
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
        """Return the logits of each image from a classifier that was fitted to other images."""
        folds = _fold(keys, "fold")
        logits = torch.zeros(len(image), len(self.test.class_names))
        for fold in sorted(set(folds.tolist())):
            inside = folds == fold
            if bool(inside.all()):
                raise ValueError(f"{self.name}: {len(image)} images are too few for cross-validation; add images")
            others = [key for key, own in zip(keys, inside.tolist(), strict=True) if not own]
            logits[inside] = self._fitted(image[~inside], labels[~inside], others).logits(image[inside])
        return logits


def open_linear_probe(found: FoundTask, options: TaskOptions) -> LinearProbeTask:
    """Open the linear probe of a data set.

    If the data set has the splits `train` and `test`, the task fits the probe to `train` and tests the probe on `test`.
    In CLIP_benchmark's layout, a split is a folder of shards. In any other layout, a split is a subfolder that is a
    data set itself, and the test split may also have the name `val` or `validation`.

    Raises:
        ValueError: if the data set does not exist or has captions, or if the splits have different classes.
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
    """Return the training folder and the test folder of a data set, or None if either folder is missing.

    Args:
        path: path of the data set; for a URL, the result is None.
    """
    if storage.is_remote(path):
        return None
    test = next((Path(path, name) for name in _TESTS if Path(path, name).is_dir()), None)
    train = Path(path, TRAIN)
    return (str(train), str(test)) if test is not None and train.is_dir() else None


def _fold(keys: Sequence[str], what: str) -> Tensor:
    """Return the fold of each image, from 0 to 4, derived from a hash of the key."""
    drawn = (int.from_bytes(sha256(f"{what} {key}".encode()).digest()[:4], "big") for key in keys)
    return torch.tensor([number % _NUM_FOLDS for number in drawn])


def _labels(labels: Tensor | None, names: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """Convert labels that index `names` to labels that index `wanted`."""
    assert labels is not None, "expected labels in a data set with classes"
    place = {name: index for index, name in enumerate(wanted)}
    return torch.tensor([place[name] for name in names])[labels]
