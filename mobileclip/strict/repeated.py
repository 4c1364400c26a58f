"""Names that come more than once where they must tell things apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def repeated(names: Iterable[str]) -> list[str]:
    """Return each name that comes more than once, sorted; time grows with the number of names."""
    return sorted(name for name, count in Counter(names).items() if count > 1)
