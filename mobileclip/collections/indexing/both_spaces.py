"""What a search asks of an index that is being upgraded: its query in the new space, and pictures encoded for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mobileclip.collections.indexing.upgrading import Kept, kept_of
from mobileclip.collections.reading.anew import COLUMNS, encode_anew
from mobileclip.collections.searching.queries import Upgraded, Vector
from mobileclip.collections.searching.two_spaces import Places, TwoSpaces
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

    def query(
        self,
        direction: Callable[[Callable[[], ImageTextModel], list[Vector]], Vector],
        like: Sequence[int],
        shortlist: int,
        seconds: float | None = None,
    ) -> Upgraded | None:
        """Return a query in the new space; None where the old one answers alone.

        That is so when the upgrade has ended meanwhile, its model is gone, or a picture that others are to be like
        cannot be encoded anew.

        Args:
            direction: makes it with a model, and embeddings of what pictures are like.
            like: ids of what pictures are like.
            shortlist: pictures that are encoded anew for it, at most.
            seconds: for these, see `TwoSpaces.nearest`.
        """
        now = NewSpace.of(self._store)
        if now is None or now.about != self._space.about:
            return None
        clip = self.clip()
        if clip is None:
            return None
        known = self._spaces.embeddings_of(like)
        if len(known) < len(like):
            return None
        return Upgraded(spaces=self._spaces, query=direction(lambda: clip, known), shortlist=shortlist, seconds=seconds)

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
