"""Parses and applies conditions on image metadata, such as `width>1000`, without evaluating code."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from datetime import date, time
from typing import Any, Literal, get_args

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.snapshot import TAG, Snapshot
from mobileclip.registry import nearest
from mobileclip.strict import strict

Comparison = Literal["=", "!=", "<", "<=", ">", ">=", "~"]

NUMBERS = ("size", "width", "height", "latitude", "longitude", "time")
TEXTS = ("path", "part", "camera", "taken", "sha256")
DATE = "taken"
"""The text column with a date and time."""

_DATE = re.compile(r"(\d{4})(?:-(\d\d?)(?:-(\d\d?)(?:[T ](\d\d?)(?::(\d\d?)(?::(\d\d?))?)?)?)?)?")
_SEPARATORS = ("", "-", "-", "T", ":", ":")
_COMPARE = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONDITION = re.compile(r"\s*(tag:[^<>=!~]*[^<>=!~\s]|[A-Za-z_0-9]+)\s*(<=|>=|!=|==|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_EXPECTED = "expected a column, a comparison and a value, such as width>1000, taken>=2024-05, path~holiday or tag=dog"


def _is_score(column: str) -> bool:
    return column.startswith(f"{TAG}:")


def _is_column(_: object, __: object, value: str) -> None:
    if value not in (*NUMBERS, *TEXTS, TAG) and not _is_score(value):
        raise ValueError(f"there is no column {value!r}; {nearest(value, (*NUMBERS, *TEXTS, TAG))}")


@attrs.frozen(kw_only=True, field_transformer=strict)
class Condition:
    """A comparison of a column with a value. An image without a value in this column does not meet the condition.

    Args:
        column: a name in `NUMBERS` or `TEXTS`; `tag`, to compare with a word by `=` or `!=`; or `tag:WORD`, the score
            for a word, from 0 to 1, see `TagWords`.
        comparison: `~` means "contains", ignoring case; all other comparisons of texts are exact. A date is a period:
            `2024-06` means all of June. An image taken within the period meets `=`, `<=` and `>=`; an earlier image
            meets `<` and `<=`, and a later image meets `>` and `>=`.
        value: number or text to compare with; for `taken`, a date as `YYYY-MM-DDTHH:MM:SS`, or a prefix of this format.

    Raises:
        ValueError: if the column is unknown, or does not support the comparison or the value.
    """

    column: str = attrs.field(validator=_is_column)
    comparison: Comparison
    value: str | float

    def __attrs_post_init__(self) -> None:
        """Check that the column supports the comparison and the value."""
        if isinstance(self.value, str) != (self.column in (*TEXTS, TAG)):
            kind = "a text" if self.column in (*TEXTS, TAG) else "a number"
            raise ValueError(f"{self.column} must be compared with {kind}, not with {self.value!r}")
        if self.column == TAG and self.comparison not in ("=", "!="):
            raise ValueError(f"a tag has no order; write {TAG}=WORD, {TAG}!=WORD, or, for the score, {TAG}:WORD>=0.99")
        if self.comparison == "~" and self.column not in TEXTS:
            raise ValueError(
                f"~ searches a text, but {self.column} is a number; use one of {', '.join(get_args(Comparison)[:-1])}"
            )
        if self.column == DATE and self.comparison != "~":
            _date(str(self.value))

    def holds(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Return the mask of images that meet the condition.

        Args:
            values: values of the condition's column, see `Snapshot.column`.
        """
        wanted = str(self.value)
        if self.column in NUMBERS or _is_score(self.column):
            return np.asarray(_COMPARE[self.comparison](values, self.value) & ~np.isnan(values))
        if self.comparison == "~":
            texts, wanted = values, wanted.casefold()
            if self.column == DATE:
                texts = np.datetime_as_string(values).astype(object)
                texts[np.isnat(values)] = None
            return np.array([one is not None and wanted in one.casefold() for one in texts.tolist()], np.bool_)
        if self.column != DATE:
            compare = _COMPARE[self.comparison]
            return np.array([one is not None and compare(one, wanted) for one in values.tolist()], np.bool_)
        first = np.datetime64(_date(wanted))
        # The first moment after the period.
        end = (first + 1).astype(values.dtype)
        if self.comparison in ("=", "!="):
            is_within = (first <= values) & (values < end)
            return np.asarray((is_within == (self.comparison == "=")) & ~np.isnat(values))
        bound = first if self.comparison in ("<", ">=") else end
        return np.asarray(values < bound if self.comparison in ("<", "<=") else values >= bound)


def matching(snapshot: Snapshot, conditions: Sequence[Condition]) -> NDArray[np.int64]:
    """Return the ascending positions of the images that meet all conditions."""
    meets = np.ones(len(snapshot), np.bool_)
    for one in conditions:
        if one.column == TAG:
            least = Condition(column=f"{TAG}:{one.value}", comparison=">=", value=1 - snapshot.require_words().share)
            meets &= least.holds(snapshot.column(least.column)) == (one.comparison == "=")
        else:
            meets &= one.holds(snapshot.column(one.column))
    return np.flatnonzero(meets)


def parse_condition(text: str) -> Condition:
    """Parse a condition such as `width>1000`.

    Raises:
        ValueError: if the text is not a known column, a comparison and a valid value.

    Examples:
        >>> parse_condition("width >= 1000").value
        1000.0
    """
    match = _CONDITION.fullmatch(text)
    if match is None or not match[3]:
        raise ValueError(f"'{storage.printable(text)}' is not a condition; {_EXPECTED}")
    column, comparison, given = match[1].lower(), match[2], match[3]
    _is_column(None, None, column)
    value: Any = given if column in (*TEXTS, TAG) else _number(column, given)
    known: dict[str, Comparison] = {one: one for one in get_args(Comparison)}
    return Condition(column=column, comparison=known["=" if comparison == "==" else comparison], value=value)


def is_condition(text: str) -> bool:
    """Return whether a text is a valid condition."""
    try:
        parse_condition(text)
    except ValueError:
        return False
    return True


def _number(column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{column} is a number, but '{storage.printable(text)}' is not; {_EXPECTED}")
    return value


def _date(text: str) -> str:
    """Convert a full or partial date to the format of `taken`, such as `2024-6-1 9` to `2024-06-01T09`."""
    match = _DATE.fullmatch(text.strip())
    parts = [part for part in match.groups() if part is not None] if match else []
    moment = "".join(f"{separator}{part:0>2}" for separator, part in zip(_SEPARATORS, parts, strict=False))
    try:
        # The default is the first month and the first day.
        date.fromisoformat(f"{moment[:10]}-01-01"[:10])
        time.fromisoformat(moment[11:] or "00")
    except ValueError:
        raise ValueError(
            f"{DATE} is a date, but '{storage.printable(text)}' is not; expected a date such as 2024, 2024-06, "
            "2024-06-01 or 2024-06-01T12:30, or taken~TEXT to search for a text within the date"
        ) from None
    return moment
