"""What a search asks of an index that is being upgraded: its query in the new space, and pictures encoded for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.collections.indexing.upgrading import Kept, kept_of
from mobileclip.collections.reading.anew import COLUMNS, encode_anew, encode_examples
from mobileclip.collections.searching.learned import Taught
from mobileclip.collections.searching.queries import Upgraded, Vector
from mobileclip.collections.searching.two_spaces import Places, TwoSpaces
from mobileclip.collections.store.concepts import Concept, Key, places_of
from mobileclip.collections.store.snapshot import Snapshot
from mobileclip.collections.store.store import Store
from mobileclip.collections.store.upgrading import NewSpace
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.machine import raise_machine_fault
from mobileclip.terminal import get_logger

logger = get_logger(__name__)


class BothSpaces:
    """Both spaces of an index, and the model of the new one, which is loaded when it is first needed.

    Args:
        store: of the index.
        snapshot: of it.
        space: the new one.
        load: gives its model.
    """

    def __init__(
        self, store: Store, snapshot: Snapshot, space: NewSpace, load: Callable[[NewSpace], ImageTextModel]
    ) -> None:
        self._store, self._snapshot, self._space, self._load = store, snapshot, space, load
        self._spaces = TwoSpaces(snapshot, space, self._encode)
        self._outside: dict[Key, Vector] = {}
        self.left_behind: dict[str, tuple[str, ...]] = {}
        """The examples that the new model cannot encode, by concept: the old space answers where one is used."""

    def query(
        self,
        direction: Callable[[Callable[[], ImageTextModel], list[Vector]], Vector],
        like: Sequence[int],
        taught: Taught,
        shortlist: int,
        seconds: float | None = None,
    ) -> Upgraded | None:
        """Return a query in the new space; None where the old one answers alone.

        That is so when the upgrade has ended meanwhile, its model is gone, or a picture that others are to be like, or
        an example, is not encoded anew: it cannot be, which `left_behind` says, or not in the time, and then it waits.

        Args:
            direction: makes it with a model, and embeddings of what pictures are like.
            like: ids of what pictures are like.
            taught: the concepts in it, in the old space.
            shortlist: pictures that are encoded anew for it, at most.
            seconds: for these, see `TwoSpaces.nearest`.
        """
        now = NewSpace.of(self._store)
        if now is None or now.about != self._space.about:
            return None
        clip = self.clip()
        if clip is None:
            return None
        known = self._spaces.embeddings_of(like, seconds)
        there = taught.followed(lambda concept: self._followed(concept, clip, seconds))
        if there is None or len(known) < len(set(like)):
            return None
        query = direction(lambda: clip, [known[one] for one in like])
        return Upgraded(spaces=self._spaces, query=query, shortlist=shortlist, seconds=seconds, cache=there.cache())

    def _followed(self, concept: Concept, clip: ImageTextModel, seconds: float | None) -> Concept | None:
        """Return a concept in the new space; None where an example is not encoded anew."""
        places = places_of(self._snapshot, concept.examples)
        ids = {key: int(self._snapshot.ids[place]) for key, place in places.items()}
        known = self._spaces.embeddings_of(list(ids.values()), seconds)
        new = [one for one in concept.examples if one.key not in ids and one.key not in self._outside]
        if new:
            self._outside |= encode_examples(new, clip, reduced=self._store.about.decode == "fast")
        there = self._outside | {key: known[number] for key, number in ids.items() if number in known}
        left = tuple(
            one.path
            for one in concept.examples
            if one.key not in there and (one.key not in ids or self._spaces.cannot_be(ids[one.key]))
        )
        if left and self.left_behind.get(concept.name) != left:
            logger.warning(
                'the old model answers for @"%s", since the new one cannot encode %d of its examples: %s; finish with '
                "mobileclip upgrade, or give them again: mobileclip concept add",
                storage.printable(concept.name),
                len(left),
                storage.printable(", ".join(left)),
            )
        self.left_behind[concept.name] = left
        if any(one.key not in there for one in concept.examples):
            return None
        vectors = np.array([there[one.key] for one in concept.examples], np.float16)
        return attrs.evolve(concept, about=self._space.about, vectors=vectors)

    def clip(self) -> ImageTextModel | None:
        """Return the model of the new space; None, and a warning, where it cannot be loaded."""
        try:
            return self._load(self._space)
        except (OSError, ValueError) as error:
            raise_machine_fault(error)
            logger.warning("the old model answers alone, since the new one cannot be loaded: %s", error)
            return None

    def encode_waiting(self) -> bool:
        """Encode some of what waits, and return whether there is more; see `TwoSpaces`."""
        return self._spaces.encode_waiting()

    @property
    def num_waiting(self) -> int:
        """How many pictures wait to be encoded."""
        return self._spaces.num_waiting

    def _encode(self, places: Places) -> list[Kept]:
        # A shard would be read whole for one picture: it waits for `Collection.upgrade`.
        rows = [row for row in self._snapshot.rows(np.asarray(places), COLUMNS) if row is not None]
        read = encode_anew(
            [row for row in rows if row["part"] is None],
            self._load(self._space),
            reduced=self._store.about.decode == "fast",
        )
        return kept_of(list(read))
