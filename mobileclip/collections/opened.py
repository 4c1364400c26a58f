"""An index as it is read: its rows and graphs, the model that it is of, and the one that it is brought to."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import attrs
from typing_extensions import Self

from mobileclip.collections.searching.neighbours import (
    GraphSizes,
    NeighbourGraphs,
    open_graphs,
    renew_graphs,
)
from mobileclip.collections.store.about import ModelSource
from mobileclip.collections.store.snapshot import Snapshot, take_snapshot
from mobileclip.collections.store.store import Store
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
        self.graph_sizes = GraphSizes()
        self._clip = clip
        self._snapshot: Snapshot | None = None
        self._graphs: NeighbourGraphs | None = None
        self._of = store.about.identity

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
            self._graphs = open_graphs(self.path, self._snapshot, sizes=self.graph_sizes)
        return self._snapshot

    @property
    def graphs(self) -> NeighbourGraphs | None:
        """What proposes neighbours of the pictures in `snapshot`: small vectors, graphs, or None: all are compared."""
        assert self.snapshot is not None, "reading the index opens its graphs"
        return self._graphs

    def load(self) -> None:
        """Read the index and its models now, not when they are first asked for.

        Raises:
            ValueError, OSError: if they cannot be read.
        """
        self._snapshot, self._clip = self.snapshot, self.clip

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
        self._snapshot = self._graphs = None
        self._let_go(before)

    def reopened(self) -> Self:
        """Return the collection as its folder is now, with the models of this one where they are still the ones.

        Raises:
            FileNotFoundError, ValueError: see `Collection.open`.
        """
        store = Store.open(self.path)
        other = type(self)(store, device=self.device, trust=self.trust, text_model=self.text_model)
        other.graph_sizes = self.graph_sizes
        if store.about.identity == self.store.about.identity:
            other._clip = self._clip  # noqa: SLF001  of this class
        return other

    def _let_go(self, before: ModelIdentity) -> None:
        """Forget the model of an index that is of another one now."""
        if self.store.about.identity != before:
            self._clip = None

    def _renew(self, *, show_progress: bool) -> None:
        """Read what was written, and bring the small vectors, or the graphs, up to date with it."""
        self._snapshot, self._of = take_snapshot(self.store), self.store.about.identity
        renew_graphs(self.path, self._snapshot, sizes=self.graph_sizes, show_progress=show_progress)
        self._graphs = open_graphs(self.path, self._snapshot, sizes=self.graph_sizes)

    def described(self) -> dict[str, object]:
        """Return what is known of the index, as JSON has it."""
        return {"index": str(self.path), "pictures": len(self.store.column("id")), "model": str(self.store.about.model)}
