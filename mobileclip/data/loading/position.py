"""Where a stream of batches stands, so that a run that resumes goes on there without making the batches before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import attrs
from attrs import validators

from mobileclip.strict import LEFT_OUT_AT_DEFAULT, strict


def _rows(values: Iterable[Iterable[int]]) -> tuple[tuple[int, int, int, int], ...]:
    return tuple((reader, turn, segment, sample) for reader, turn, segment, sample in values)


@attrs.frozen(kw_only=True, field_transformer=strict)
class StreamPosition:
    """A place in a stream of batches; `to_json` of `mobileclip.serialization` writes it beside a checkpoint.

    Which samples are good is known only after decoding them. So a position says how far every reader of
    `mobileclip.data.loading.order` has come. Of several processes each knows its own readers; put together, their
    positions are those of the run, whatever number of processes goes on with it.

    Args:
        first_batch: number of batches that were consumed.
        num_readers: of the order; 0 where no place is known, at the start of a run or of an epoch.
        places: reader, turn, segment and sample of each, see `mobileclip.data.loading.order.Cursor`.
        skipped: number of samples and shards that were left out since the start, by reason.
        version: of the order that the places are in; where nothing says it, the first.
        data: digest of names and sizes of the shards; empty where nothing says it.
        dead: numbers of the shards that the epoch does without, see `mobileclip.data.loading.epoch_order.EpochOrder`.
        found_dead: numbers of those without samples that are known by now; once a run resumes, the epochs that begin
            from there on do without them.
        num_passed_over: batches of the order that nobody had: those of an epoch that went on in another version.

    Raises:
        ValueError: if a number is negative, or a place is of a reader that there is not.
    """

    first_batch: int = attrs.field(default=0, validator=validators.ge(0))
    num_readers: int = attrs.field(default=0, validator=validators.ge(0))
    places: tuple[tuple[int, int, int, int], ...] = attrs.field(default=(), converter=_rows)
    skipped: Mapping[str, int] = attrs.field(
        factory=dict, validator=validators.deep_mapping(validators.instance_of(str), validators.ge(0))
    )
    version: int = attrs.field(default=1, validator=validators.gt(0))
    data: str = ""
    dead: tuple[int, ...] = attrs.field(default=(), validator=validators.deep_iterable(validators.ge(0)))
    found_dead: tuple[int, ...] = attrs.field(
        default=(), validator=validators.deep_iterable(validators.ge(0)), metadata=LEFT_OUT_AT_DEFAULT
    )
    num_passed_over: int = attrs.field(default=0, validator=validators.ge(0))

    @property
    def names(self) -> str:
        """The part of the digest that is of the names."""
        return self.data.partition(":")[0]

    def is_in(self, data: str) -> bool:
        """Return whether this may be a position in data of such a digest: sizes that both know are equal."""
        names, _, sizes = data.partition(":")
        pairs = zip(self.data.partition(":")[2].split("."), sizes.split("."), strict=False)
        return self.names in ("", names) and all(one == other or "" in (one, other) for one, other in pairs)

    @places.validator
    def _check_places(self, _: object, places: tuple[tuple[int, int, int, int], ...]) -> None:
        if any(min(place) < 0 or place[0] >= self.num_readers for place in places):
            raise ValueError(f"places must be of the {self.num_readers} readers, and not negative")


def joined_positions(positions: Sequence[StreamPosition]) -> StreamPosition:
    """Return the position of a run, of those of its processes.

    Raises:
        ValueError: if they are not of one step and one order.
    """
    first = positions[0]
    if any(one.first_batch != first.first_batch for one in positions):
        raise ValueError(f"the processes stand behind different batches: {[one.first_batch for one in positions]}")
    if any((one.names, one.dead) != (first.names, first.dead) for one in positions):
        raise ValueError(
            "the processes read different data, or find other shards without samples; give all of them the same files"
        )
    return attrs.evolve(
        first,
        num_readers=max(one.num_readers for one in positions),
        places=sorted({place for one in positions for place in one.places}),
        skipped=sum((Counter(one.skipped) for one in positions), Counter()),
        found_dead=tuple(sorted({number for one in positions for number in one.found_dead})),
    )
