"""Conditions on what is known of pictures, such as `width>1000`: read from a text, and never run as a program."""

from __future__ import annotations

import math
import re
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
_FUNCTIONS = {
    "=": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}
_CONDITION = re.compile(r"\s*([A-Za-z_0-9]+)\s*(<=|>=|!=|==|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_EXPECTED = "expected a column, a comparison and a value, such as width>1000, taken>=2024-05 or path~holiday"


@attrs.frozen(kw_only=True, field_transformer=strict)
class Condition:
    """A comparison of a column with a value; a picture of which the column is not known does not meet it.

    Args:
        column: one of `NUMBERS` and `TEXTS`.
        comparison: `~` finds a text within a text, whatever the case of its letters; texts are compared letter by
            letter, so that times such as `2024-05-01T12:30:00` can be.
        value: what the column is compared with.

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


def _number(column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{column} is a number, and '{storage.printable(text)}' is none; {_EXPECTED}")
    return value
