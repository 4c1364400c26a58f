"""Which of the golden file's errors a message is, and what it holds in the holes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from tests.errors.golden import Known
from tests.errors.template import Hole, Template

# A wording with fewer letters would be found in other messages: it has to be the whole of one.
_ENOUGH_LETTERS = 10
Spans = list[tuple[int, int]]


@attrs.frozen
class Fit:
    """A message that has the wording of an error: where its literal parts stand in it."""

    known: Known
    spans: Spans

    def is_hidden_by(self, other: Fit) -> bool:
        """Return whether another error says more at the same place."""
        if other.known.template.letters <= self.known.template.letters:
            return False
        theirs = {at for start, end in other.spans for at in range(start, end)}
        own = [at for start, end in self.spans for at in range(start, end)]
        return 2 * sum(at in theirs for at in own) > len(own)


def fits_in(message: str, known: Mapping[str, Known]) -> dict[str, Fit]:
    """Return the errors that a message has the wording of, by code; an outer one and the one that it reports, say."""
    fits = {code: Fit(one, spans) for code, one in known.items() if (spans := spans_of(one.template, message))}
    return {code: fit for code, fit in fits.items() if not any(map(fit.is_hidden_by, fits.values()))}


def spans_of(template: Template, message: str, *, from_end: bool = False) -> Spans | None:
    """Return where the literal parts stand: one behind the other, each as early as it can, or as late."""
    spans: Spans = []
    is_whole = template.letters < _ENOUGH_LETTERS
    literals, start, end = template.literals, 0, len(message)
    if is_whole and not (
        (isinstance(template.parts[0], Hole) or message.startswith(literals[0]))
        and (isinstance(template.parts[-1], Hole) or message.endswith(literals[-1]))
    ):
        return None
    for literal in reversed(literals) if from_end else literals:
        at = message.rfind(literal, 0, end) if from_end else message.find(literal, start)
        if at < 0:
            return None
        spans.append((at, at + len(literal)))
        start, end = at + len(literal), at
    return sorted(spans)


def values_in(template: Template, message: str) -> list[str]:
    """Return a message without the wording, once or twice: what stands in the holes, and around them."""
    found = []
    for from_end in (False, True):
        spans = spans_of(template, message, from_end=from_end) or []
        ends = [0, *(end for _, end in spans)]
        starts = [*(start for start, _ in spans), len(message)]
        found.append("\0".join(message[start:end] for start, end in zip(ends, starts, strict=True)))
    return list(dict.fromkeys(found))


def is_named(word: str, values: Iterable[str]) -> bool:
    """Return whether a word stands in one of some texts, and is no piece of a longer word or number."""
    return any(
        not (at and word[0].isalnum() and text[at - 1].isalnum())
        and not (word[-1].isalnum() and text[at + len(word) : at + len(word) + 1].isalnum())
        for text in values
        for at in _found(word, text)
    )


def _found(word: str, text: str) -> Iterable[int]:
    at = text.find(word)
    while at >= 0:
        yield at
        at = text.find(word, at + 1)
