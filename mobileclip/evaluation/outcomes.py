"""How right a model was on each image: what an interval, and a paired comparison with another model, are made of."""

from __future__ import annotations

import io
import json
import math
import re
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.evaluation.intervals import Interval, PairedDifference, paired_difference, proportion_interval
from mobileclip.terminal import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

logger = get_logger(__name__)

_NOT_A_NAME = re.compile(r"[^\w.+-]+")
_MAX_BYTES = 1 << 28


@attrs.frozen(kw_only=True, eq=False)
class Outcomes:
    """The main metric of a data set, taken apart: its values, whose mean it is.

    Shape:
        values: `(images,)`.

    Args:
        asked: hash of the keys of the images in order; two models were asked the same where it is equal.
        values: how right the model was, by image: 0 or 1 for top-1 accuracy; a fraction for retrieval, of an image and
            its captions; for the mean over classes, what the image adds to it, times the number of images.
        num_effective: as many images of equal weight would make the metric as sure.
    """

    asked: str
    values: NDArray[np.float32]
    num_effective: float

    @property
    def interval(self) -> Interval:
        """Where the true metric lies with 95 % confidence."""
        # What rounding leaves of a whole number is that number.
        total = max(1, math.floor(self.num_effective + 1e-6))
        share = min(1.0, max(0.0, float(np.mean(self.values, dtype=np.float64))))
        return proportion_interval(share * total, total)

    def compared_with(self, other: Outcomes) -> PairedDifference | None:
        """Return how much better this model is than another one, or None where they were not asked the same."""
        same = self.asked == other.asked and len(self.values) == len(other.values)
        return paired_difference(other.values, self.values) if same else None


def outcomes_of(keys: Sequence[str], values: ArrayLike, weights: ArrayLike | None = None) -> Outcomes:
    """Return the outcomes of a metric that is a mean over images.

    Args:
        keys: of the images.
        values: how right the model was on each.
        weights: of the images, adding up to one; equal ones if left out.

    Source: Kish, "Survey sampling", 1965, for the number of images that unequal weights leave.
    """
    each = np.asarray(values, dtype=np.float64)
    shares = np.full(len(each), 1 / len(each)) if weights is None else np.asarray(weights, dtype=np.float64)
    asked = sha256(json.dumps(list(keys), ensure_ascii=True).encode()).hexdigest()
    return Outcomes(
        asked=asked,
        values=(each * shares * len(each)).astype(np.float32),
        num_effective=float(1 / np.square(shares).sum()),
    )


def write_outcomes(folder: Path, key: str, evaluated: str, outcomes: Outcomes) -> None:
    """Write the outcomes of a data set beside a model's results.

    Args:
        folder: of the model's results.
        key: of the data set.
        evaluated: hash of what they depend on: those of another evaluation are not read for it.
        outcomes: of the main metric.

    Raises:
        OSError: if they cannot be written.
    """
    stream = io.BytesIO()
    about = json.dumps({"asked": outcomes.asked, "evaluated": evaluated, "num_effective": outcomes.num_effective})
    np.savez_compressed(stream, about=np.array(about), values=outcomes.values)
    path = _path(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.atomic_write(path) as file:
        file.write(stream.getvalue())


def read_outcomes(folder: Path, key: str, evaluated: str) -> Outcomes | None:
    """Return what `write_outcomes` wrote of this very evaluation, or None."""
    path = _path(folder, key)
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(storage.read_bytes(path, limit=_MAX_BYTES)), allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            values = stored["values"]
        if about["evaluated"] != evaluated:
            return None
        return Outcomes(asked=about["asked"], values=values, num_effective=about["num_effective"])
    except Exception as error:  # noqa: BLE001  whatever is wrong with it, the results are there without it
        logger.warning("%s is damaged, and models are compared without it: %s", path, error)
        return None


def _path(folder: Path, key: str) -> Path:
    return folder / "outcomes" / f"{_NOT_A_NAME.sub('-', key)[:80]}-{sha256(key.encode()).hexdigest()[:8]}.npz"
