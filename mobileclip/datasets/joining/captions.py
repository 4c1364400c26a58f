"""Real captions from a data set of their own, whose shards have the names and the keys of the reinforced ones.

DataComp-12M is to DataCompDR-12M such a data set: captions, and what is known of the downloads, in shards of the same
names with the same uids.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from mobileclip import storage
from mobileclip.data.samples.sample import SampleLimits
from mobileclip.data.shards.files import expand_shards, read_shard
from mobileclip.data.skips import BadSampleError, Skip
from mobileclip.datasets.joining.comparison import stated_of

_UID = "uid"


@attrs.frozen(kw_only=True)
class Captioned:
    """A sample in the data set of captions: its caption and the JSON beside it.

    Args:
        text: the caption.
        stated: the JSON beside it.
    """

    text: bytes
    stated: Mapping[str, Any]


class Captions:
    """The captions of one shard, by key and by uid.

    Args:
        shard: its path or URL; None for no captions at all.
        on_skip: called with what was wrong with the shard.
        limits: of what is read.
    """

    def __init__(self, shard: str | None, on_skip: Callable[[Skip], None], limits: SampleLimits) -> None:
        self._limits = limits
        self._known: dict[str, Captioned] = {}
        for sample in () if shard is None else read_shard(shard, on_skip, limits):
            if sample.problem is None and sample.members.get("txt", b"").strip():
                stated = stated_of(sample.members.get("json"), limits)
                known = Captioned(text=sample.members["txt"], stated=stated)
                self._known.setdefault(sample.key, known)
                if isinstance(stated.get(_UID), str):
                    self._known.setdefault(stated[_UID], known)

    def find(self, key: str, stated: Mapping[str, Any]) -> Captioned | None:
        """Return what is known of a sample, None where there is nothing.

        Args:
            key: of the sample.
            stated: its JSON, whose `uid` comes before the key.

        Raises:
            BadSampleError: with the reason `other_caption`, if the caption is one of another picture.
        """
        uid = stated.get(_UID)
        found = self._known.get(uid) if isinstance(uid, str) else None
        found = self._known.get(key) if found is None else found
        if (
            found is not None
            and "sha256" in stated
            and found.stated.get("sha256", stated["sha256"]) != stated["sha256"]
        ):
            raise BadSampleError("other_caption", "the caption under its uid is one of a picture with another hash")
        return found


def caption_shards(captions: str | None, names: Sequence[str]) -> dict[str, str | None]:
    """Return, by the name of a reinforced shard, the one with its captions; None where captions are not asked for.

    Args:
        captions: folder or URL of the shards, or a pattern of some.
        names: of the reinforced shards.

    Raises:
        ValueError: if a pattern has no shard of a name, or several.
    """
    if captions is None:
        return dict.fromkeys(names)
    if not captions.endswith(".tar"):
        return {name: storage.join(captions, name) for name in names}
    shards: dict[str, list[str]] = defaultdict(list)
    for shard in expand_shards(captions):
        shards[storage.file_name(shard)].append(shard)
    for name in names:
        found = shards[storage.file_name(name)]
        if len(found) != 1:
            raise ValueError(
                f"{len(found)} of the shards {captions} are called {storage.file_name(name)}, expected one: captions "
                "are taken from the shard of the same name"
            )
    return {name: shards[storage.file_name(name)][0] for name in names}
