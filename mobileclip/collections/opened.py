"""An index as it is read: its rows and graphs, the model that it is of, and the one that it is brought to."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import attrs
from typing_extensions import Self

from mobileclip.collections.indexing.both_spaces import BothSpaces
from mobileclip.collections.searching.coding import recall_of, renew_codes
from mobileclip.collections.searching.neighbours import (
    GraphSizes,
    NeighbourGraphs,
    open_graphs,
    remove_graphs,
    renew_graphs,
)
from mobileclip.collections.searching.scan import SmallScan, open_scan
from mobileclip.collections.searching.two_spaces import SHORTLIST
from mobileclip.collections.store.about import About, ModelSource
from mobileclip.collections.store.small import Recall
from mobileclip.collections.store.snapshot import Snapshot, take_snapshot
from mobileclip.collections.store.store import Store
from mobileclip.collections.store.upgrading import NewSpace, UpgradeState
from mobileclip.inference.identity import ModelIdentity
from mobileclip.inference.image_text_model import ImageTextModel

Index = TypeVar("Index", bound="OpenedIndex")


class OpenedIndex:
    """What an index holds, which is read when it is first asked for, and its models; see `Collection`.

    Args:
        store: the rows.
        clip: the model that the index is of; by default it is loaded when it is first needed.
        device: where to compute.
        trust: see `Collection`.
        text_model: see `Collection`.
    """

    def __init__(
        self,
        store: Store,
        *,
        clip: ImageTextModel | None = None,
        device: str = "cpu",
        trust: bool = False,
        text_model: str | Path | None = None,
    ) -> None:
        self.store = store
        self.device, self.trust, self.text_model = device, trust, text_model
        self.graph_sizes, self.shortlist = GraphSizes(), SHORTLIST
        self.seconds: float | None = None
        self._clip = clip
        self._snapshot: Snapshot | None = None
        self._graphs: NeighbourGraphs | SmallScan | None = None
        self._new_clip: tuple[About, ImageTextModel] | None = None
        self._of = store.about.identity
        self._spaces: BothSpaces | None = None

    @property
    def path(self) -> Path:
        """The folder of the index."""
        return self.store.folder

    @property
    def clip(self) -> ImageTextModel:
        """The model that the index is of, with the text tower that is asked for.

        Raises:
            ValueError: if another is now where it came from, or the text tower is of another space.
        """
        if self._clip is None:
            source = self.store.about.model
            clip, identity = source.load(self.device, trust=self.trust, text_model=self.text_model)
            self.require(identity, "what its model was loaded from")
            self._clip = clip
        return self._clip

    def require(self, identity: ModelIdentity, there: str) -> None:
        """Refuse a model that is another one than that of the index.

        Args:
            identity: of the model.
            there: where it is from, for the message.

        Raises:
            ValueError: if it is another one.
        """
        self.store.about.identity.require_same(identity, here=f"the index {self.path}", there=there)

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self.snapshot)

    @property
    def snapshot(self) -> Snapshot:
        """What the index holds, as it was when it was read."""
        if self._snapshot is None or self._of != self.store.about.identity:
            before = self.store.about.identity
            self._snapshot = take_snapshot(self.store)
            self._let_go(before)
            self._of = self.store.about.identity
            self._graphs = self._opened(self._snapshot)
            self._spaces = self._both_spaces(self._snapshot)
        return self._snapshot

    @property
    def graphs(self) -> NeighbourGraphs | SmallScan | None:
        """What proposes neighbours of the pictures in `snapshot`: small vectors, graphs, or None: all are compared."""
        assert self.snapshot is not None, "reading the index opens its graphs"
        return self._graphs

    def load(self) -> None:
        """Read the index and its models now, not when they are first asked for.

        Raises:
            ValueError, OSError: if they cannot be read.
        """
        self._snapshot, self._clip = self.snapshot, self.clip
        if self._spaces is not None:
            self._spaces.clip()

    def require_source(self, source: ModelSource) -> None:
        """Refuse a model whose name alone tells that it is another one; no weights are read, and none are fetched.

        Args:
            source: the model that is asked for.

        Raises:
            ValueError: if it is another one, or there is no such model.
            FileNotFoundError: if there is no such file.
        """
        about = self.store.about
        if about.is_known_to_be_of_another(source) and str(source) != str(about.model):
            raise ValueError(
                f"the index {self.path} is of {about.model}, and not of {source}: embeddings of two models cannot "
                "be compared; leave the model out to go on with the index, or give another folder for another index"
            )

    def refresh(self) -> None:
        """Read the index anew when it is next asked for."""
        before, self.store = self.store.about.identity, Store.open(self.path)
        self._snapshot = self._graphs = self._spaces = None
        self._let_go(before)

    def reopened(self) -> Self:
        """Return the collection as its folder is now, with the models of this one where they are still the ones.

        Raises:
            FileNotFoundError, ValueError: see `Collection.open`.
        """
        store = Store.open(self.path)
        other = type(self)(store, device=self.device, trust=self.trust, text_model=self.text_model)
        other.graph_sizes, other.shortlist, other.seconds = self.graph_sizes, self.shortlist, self.seconds
        if store.about.identity == self.store.about.identity:
            other._clip, other._new_clip = self._clip, self._new_clip  # noqa: SLF001  of this class
        return other

    def _let_go(self, before: ModelIdentity) -> None:
        """Forget the model of an index that is of another one now."""
        if self.store.about.identity != before:
            self._clip = self._new_clip = None

    def _renew(self, *, show_progress: bool) -> None:
        """Read what was written, and bring the small vectors, or the graphs, up to date with it."""
        renew_codes(self.store, show_progress=show_progress)
        self._snapshot, self._of = take_snapshot(self.store), self.store.about.identity
        if self._snapshot.small is None:
            renew_graphs(self.path, self._snapshot, sizes=self.graph_sizes, show_progress=show_progress)
        else:
            remove_graphs(self.path)
        self._graphs = self._opened(self._snapshot)
        self._spaces = self._both_spaces(self._snapshot)

    def _opened(self, snapshot: Snapshot) -> NeighbourGraphs | SmallScan | None:
        return open_scan(snapshot) or open_graphs(self.path, snapshot, sizes=self.graph_sizes)

    @property
    def recall(self) -> Recall | None:
        """How many of the nearest pictures are found by small vectors; None of float16."""
        return recall_of(self.store)

    @property
    def upgrade_state(self) -> UpgradeState | None:
        """How far an upgrade of the index is; None where none is under way."""
        space = NewSpace.of(self.store)
        return None if space is None else space.state()

    def described(self) -> dict[str, object]:
        """Return what the index is of, as JSON has it; no model is loaded."""
        state = self.upgrade_state
        told: dict[str, object] = {"index": str(self.path), "pictures": len(self.store.column("id"))}
        told["model"] = str(self.store.about.model)
        if (recall := self.recall) is not None:
            told["vectors"] = attrs.asdict(recall)
        if state is None:
            return told
        upgrade = {"model": str(state.about.model), "pictures": state.num_done, "measured": str(state.measured)}
        return {**told, "upgrade": upgrade}

    def _clip_of(self, space: NewSpace) -> ImageTextModel:
        """Return the model that the index is brought to.

        Raises:
            ValueError: if another is now where it came from.
        """
        if self._new_clip is None or self._new_clip[0] != space.about:
            source = space.about.model
            clip, identity = source.load(self.device, trust=self.trust)
            space.about.identity.require_same(identity, here=f"the new space of {self.path}", there=f"{source}")
            self._new_clip = space.about, clip
        return self._new_clip[1]

    def _both_spaces(self, snapshot: Snapshot) -> BothSpaces | None:
        """Return both spaces of an index that is being upgraded.

        A text tower beside the model is of the old space: with one, that is searched alone.
        """
        space = NewSpace.of(self.store) if self.text_model is None else None
        return None if space is None else BothSpaces(self.store, snapshot, space, self._clip_of)
