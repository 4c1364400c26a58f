"""Models of other packages as models of the library, by what stands before the colon."""

from mobileclip.encoders.checkpoints.loading import Source, sources
from mobileclip.interop.open_clip_models import open_clip_source, read_open_clip
from mobileclip.interop.transformers_models import TransformersSource, read_dual_encoder


def _of_hub(text: str) -> TransformersSource:
    model, _, revision = text.partition("@")
    return TransformersSource(model=model, revision=revision or None)


sources.add("open_clip", Source(read=lambda text: read_open_clip(open_clip_source(text)), check=open_clip_source))
sources.add("transformers", Source(read=lambda text: read_dual_encoder(_of_hub(text)), check=_of_hub))
