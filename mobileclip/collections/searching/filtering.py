"""Conditions on what is known of pictures, such as `width>1000`: read from a text, and never run as a program."""

from __future__ import annotations

import math
import re
from datetime import date, time
from typing import TYPE_CHECKING, Any, Literal, get_args

import attrs
import numpy as np
from attrs import validators
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.store.segments import arrow
from mobileclip.registry import nearest
from mobileclip.strict import strict

if TYPE_CHECKING:
    import pyarrow as pa

Comparison = Literal["=", "!=", "<", "<=", ">", ">=", "~"]

NUMBERS = ("size", "width", "height", "latitude", "longitude", "time")
TEXTS = ("path", "part", "camera", "taken", "sha256")
DATE = "taken"
"""The text that is a moment."""

_FUNCTIONS = {
    "=": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}
_DATE = re.compile(r"(\d{4})(?:-(\d\d?)(?:-(\d\d?)(?:[T ](\d\d?)(?::(\d\d?)(?::(\d\d?))?)?)?)?)?")
_SEPARATORS = ("", "-", "-", "T", ":", ":")
# Behind all digits and separators of a moment.
_END = "~"
_CONDITION = re.compile(r"\s*([A-Za-z_0-9]+)\s*(<=|>=|!=|==|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_EXPECTED = "expected a column, a comparison and a value, such as width>1000, taken>=2024-05 or path~holiday"


@attrs.frozen(kw_only=True, field_transformer=strict)
class Condition:
    """A comparison of a column with a value; a picture of which the column is not known does not meet it.

    Args:
        column: one of `NUMBERS` and `TEXTS`.
        comparison: `~` finds a text within a text, whatever the case of its letters; other texts are compared letter by
            letter. A date stands for all of its moments: `2024-06` from the first second of June to the last. A picture
            is `=` a date if it was taken within it, `<` before all of it, `>` after all of it, `<=` before its end, and
            `>=` from its beginning on.
        value: what the column is compared with; for `taken`, a date as `YYYY-MM-DDTHH:MM:SS`, or its beginning.

    Raises:
        ValueError: if there is no such column or comparison, or the value does not fit the column.
    """

    column: str = attrs.field(validator=validators.in_((*NUMBERS, *TEXTS)))
    comparison: Comparison
    value: str | float

    def __attrs_post_init__(self) -> None:
        """Check that the value fits the column."""
        if isinstance(self.value, str) != (self.column in TEXTS):
            kind = "a text" if self.column in TEXTS else "a number"
            raise ValueError(f"{self.column} is compared with {kind}, not with {self.value!r}")
        if self.comparison == "~" and self.column not in TEXTS:
            raise ValueError(f"~ looks for a text, and {self.column} is a number; use one of {', '.join(_FUNCTIONS)}")
        if self.column == DATE and self.comparison != "~":
            _date(str(self.value))

    def mask(self, table: pa.Table) -> NDArray[np.bool_]:
        """Return for every row whether it meets the condition.

        Args:
            table: with the column.
        """
        arrow()
        import pyarrow.compute as pc

        column = table[self.column]
        if self.comparison == "~":
            found = pc.match_substring(column, str(self.value), ignore_case=True)
        elif self.column == DATE:
            found = _compared_with_date(column, self.comparison, _date(str(self.value)))
        else:
            found = pc.call_function(_FUNCTIONS[self.comparison], [column, self.value])
        mask: NDArray[np.bool_] = pc.fill_null(found, False).to_numpy()
        return mask


def parse_condition(text: str) -> Condition:
    """Return the condition that a text such as `width>1000` states.

    Raises:
        ValueError: if it states none.

    Examples:
        >>> parse_condition("width >= 1000").value
        1000.0
    """
    match = _CONDITION.fullmatch(text)
    if match is None or not match[3]:
        raise ValueError(f"'{storage.printable(text)}' is no condition; {_EXPECTED}")
    column, comparison, given = match[1].lower(), match[2], match[3]
    if column not in (*NUMBERS, *TEXTS):
        raise ValueError(f"there is no column {column!r}; {nearest(column, (*NUMBERS, *TEXTS))}")
    value: Any = given if column in TEXTS else _number(column, given)
    known: dict[str, Comparison] = {one: one for one in get_args(Comparison)}
    return Condition(column=column, comparison=known["=" if comparison == "==" else comparison], value=value)


def is_condition(text: str) -> bool:
    """Return whether a text states a condition."""
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
        raise ValueError(f"{column} is a number, and '{storage.printable(text)}' is none; {_EXPECTED}")
    return value


def _date(text: str) -> str:
    """Return a date, or the beginning of one, as the moments within it begin: `2024-6-1 9` as `2024-06-01T09`."""
    match = _DATE.fullmatch(text.strip())
    parts = [part for part in match.groups() if part is not None] if match else []
    moment = "".join(f"{separator}{part:0>2}" for separator, part in zip(_SEPARATORS, parts, strict=False))
    try:
        # The first month and the first day where there are none.
        date.fromisoformat(f"{moment[:10]}-01-01"[:10])
        time.fromisoformat(moment[11:] or "00")
    except ValueError:
        raise ValueError(
            f"{DATE} is a date, and '{storage.printable(text)}' is none; expected one such as 2024, 2024-06, "
            "2024-06-01 or 2024-06-01T12:30, or taken~TEXT for a text within it"
        ) from None
    return moment


def _compared_with_date(column: pa.ChunkedArray, comparison: Comparison, moment: str) -> pa.ChunkedArray:
    """Return for every moment how it lies to the interval from the first moment of a date to its end."""
    import pyarrow.compute as pc

    first, end = moment, moment + _END
    if comparison in ("=", "!="):
        within = pc.and_(pc.greater_equal(column, first), pc.less(column, end))
        return within if comparison == "=" else pc.invert(within)
    bound = first if comparison in ("<", ">=") else end
    return pc.less(column, bound) if comparison in ("<", "<=") else pc.greater_equal(column, bound)
