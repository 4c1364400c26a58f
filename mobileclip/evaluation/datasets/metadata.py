"""The groups of images that some data sets hold: whole numbers in a numpy file beside each image."""

from __future__ import annotations

import numpy as np

from mobileclip.data.samples.npz import read_npy
from mobileclip.data.skips import BadSampleError
from mobileclip.evaluation.suite import suite_entry

# By the key of the data set: the order of the numbers.
# Source: DataComp (Gadre et al. 2023), which publishes the data in this form; the fields of the first three are those
# of WILDS (Koh et al. 2021).
FIELDS = {
    "wilds/iwildcam": ("location", "sequence", "year", "month", "day", "hour", "minute", "second", "y"),
    "wilds/camelyon17": ("hospital", "slide", "y"),
    "wilds/fmow": ("region", "year", "y"),
    "fairness/dollar_street": ("income_ds", "income_meta", "region"),
    "fairness/geode": ("region", "country"),
}

# Metrics of the worst group.
OVER_GROUPS = ("acc_worst_region", "acc_top5_wg", "acc_wg")


def metadata_fields(name: str) -> tuple[str, ...]:
    """Return what the numbers beside an image of a data set say, in order; none for data sets that have no groups.

    Args:
        name: of its folder, without `wds_` and `_test`.
    """
    entry = suite_entry(name)
    return () if entry is None else FIELDS.get(entry.key, ())


def needs_metadata(name: str) -> bool:
    """Return whether the metric that counts on a data set is one over groups, so that an image without them is none."""
    entry = suite_entry(name)
    return entry is not None and entry.main_metric in OVER_GROUPS


def parse_metadata(stored: bytes | None, fields: tuple[str, ...]) -> tuple[int, ...]:
    """Return the numbers in a numpy file.

    Fractions are cut off, as the public evaluation cuts them off before it forms groups.

    Args:
        stored: the file; None where there is none.
        fields: what the numbers say, at least one.

    Raises:
        BadSampleError: with the reason `no_metadata`, if there is no file, or `bad_metadata`, if it is something else
            than one finite number from 0 for each field.
    """
    named = ", ".join(fields)
    if stored is None:
        raise BadSampleError("no_metadata", f"there is no .npy with its {named}")
    try:
        values = read_npy(stored)
    except ValueError as error:
        raise BadSampleError("bad_metadata", f".npy is no array of numbers: {error}") from None
    if values.shape != (len(fields),):
        found = f"{values.dtype} of shape {values.shape}"
        raise BadSampleError("bad_metadata", f".npy holds {found}, expected {len(fields)} numbers: {named}")
    if not (np.isfinite(values).all() and (values >= 0).all() and (values < 2**63).all()):
        raise BadSampleError("bad_metadata", f".npy holds {values.tolist()}, expected numbers from 0 for {named}")
    return tuple(int(value) for value in values)
