"""CoCa, through open_clip, as a captioner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from attrs import validators
from torch import Tensor

from mobileclip.interop.open_clip_models import (
    OpenClipModel,
    OpenClipSource,
    image_input,
    load_open_clip,
    open_clip_package,
)
from mobileclip.reinforce.captioners.decoder import CocaDecoder
from mobileclip.reinforce.captioners.nucleus import NucleusCaptioner, NucleusSpec
from mobileclip.reinforce.captioners.spec import captioners
from mobileclip.strict import strict


@captioners.register("coca")
@attrs.frozen(kw_only=True, field_transformer=strict)
class CocaCaptioner(NucleusSpec):
    """CoCa's captions by nucleus sampling, cut in front of the first full stop.

    Args:
        model: as `OpenClipTeacher` takes it.
        pretrained: as `OpenClipTeacher` takes it.

    Raises:
        ValueError: if the weights are not said, or are said twice.

    Source: section 4 of the paper, and the release's generator, whose length limits these are.
    Differs: draws depend on the image's seed alone, not on the batch; neither a full stop nor the end comes before the
        fifth id, so that no caption is empty; padding, which the release may draw and then spells out as exclamation
        marks, is never drawn.
    """

    model: str = attrs.field(default="coca_ViT-L-14", validator=validators.min_len(1))
    pretrained: str | None = "mscoco_finetuned_laion2B-s13B-b90k"

    def __attrs_post_init__(self) -> None:
        self._source()

    def build(self, device: str = "cpu") -> CocaModel:
        """Return the captioner, its weights loaded.

        Raises:
            ValueError: if open_clip is missing, it does not know the model or the tag, the weights do not fit, or the
                model is no CoCa that can be decoded here.
        """
        return CocaModel(self, load_open_clip(self._source(), device=device, precision=self.precision))

    def _source(self) -> OpenClipSource:
        return OpenClipSource(model=self.model, pretrained=self.pretrained)


class CocaModel(NucleusCaptioner):
    """A loaded CoCa of open_clip's.

    Args:
        spec: the choices.
        loaded: the model.

    Raises:
        ValueError: if it is no CoCa, its image transform is not resize and centre crop, or its context is too short.
    """

    def __init__(self, spec: CocaCaptioner, loaded: OpenClipModel) -> None:
        if not isinstance(loaded.model, open_clip_package().CoCa):
            raise ValueError(f"{loaded.name} is no CoCa, so it writes no captions")
        if loaded.preprocess["resize_mode"] != "shortest":
            raise ValueError(
                f"{loaded.name} makes images square by {loaded.preprocess['resize_mode']!r}; only 'shortest', resize "
                "and centre crop, is supported"
            )
        super().__init__(
            spec,
            name=loaded.name,
            weights_sha256=loaded.weights_sha256,
            image=image_input(loaded.preprocess, loaded.name),
            place=next(loaded.model.parameters()),
            encode=lambda images: loaded.model.visual(images)[1],
            decoder=CocaDecoder(loaded.model),
            vocabulary=Vocabulary(loaded.tokenizer),
            context_length=loaded.model.context_length,
        )


class Vocabulary:
    """The vocabulary of CoCa's captions: ids to text.

    Args:
        tokenizer: open_clip's, of CLIP's byte pairs.

    Raises:
        ValueError: if it is another one.
    """

    def __init__(self, tokenizer: Callable[[Sequence[str]], Tensor]) -> None:
        package: Any = open_clip_package()
        if not isinstance(tokenizer, package.tokenizer.SimpleTokenizer):
            raise ValueError(f"captions in the ids of {type(tokenizer).__name__} cannot be read; CLIP's are expected")
        self._tokenizer: Any = tokenizer
        tokens = self._tokenizer.decoder
        self.start_id: int = self._tokenizer.sot_token_id
        self.end_id: int = self._tokenizer.eot_token_id
        self.stops = torch.tensor([index == self.end_id or "." in tokens[index] for index in range(len(tokens))])

    def text(self, ids: Sequence[int]) -> str:
        """Return the caption: up to the first full stop or the end, without it."""
        before_end = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
        decoded: str = self._tokenizer.decode(before_end)
        return decoded.split(".", maxsplit=1)[0].strip()
