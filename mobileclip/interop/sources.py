"""Sources of open_clip and transformers models, for checkpoints with the prefix `open_clip:` or `transformers:`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobileclip.encoders.checkpoints.loading import ModelSource, model_sources
from mobileclip.interop.open_clip_models import OpenClipSource, open_clip_package, open_clip_source, read_open_clip
from mobileclip.interop.transformers_models import TransformersSource, read_dual_encoder


def _of_hub(text: str) -> TransformersSource:
    model, _, revision = text.partition("@")
    return TransformersSource(model=model, revision=revision or None)


def _card_of(source: OpenClipSource) -> str | Path | None:
    """Return the folder or hub repository with the model card of a model's weights."""
    if source.pretrained is None:
        place = source.model.partition(":")[2]
        return Path(place) if source.model.startswith("local-dir:") else place
    if Path(source.pretrained).is_file():
        return Path(source.pretrained).parent
    known = open_clip_package().get_pretrained_cfg(source.model, source.pretrained) or {}
    return str(known.get("hf_hub") or "").strip("/") or None


def _licence(place: str | Path | None) -> str | None:
    """Return the licence in a model card; None without a card, a licence or a connection."""
    from huggingface_hub import ModelCard, hf_hub_download

    try:
        path = Path(place) / "README.md" if isinstance(place, Path) else Path(hf_hub_download(place or "", "README.md"))
        card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        about: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001  after any error of the hub or the card, the licence is unknown
        return None
    said = about.get("license")
    named = about.get("license_name") if said == "other" else None
    return str(named or said) if said else None


model_sources.add(
    "open_clip",
    ModelSource(
        read=lambda text: read_open_clip(open_clip_source(text)),
        check=open_clip_source,
        licence=lambda text: _licence(_card_of(open_clip_source(text))),
    ),
)
model_sources.add(
    "transformers",
    ModelSource(
        read=lambda text: read_dual_encoder(_of_hub(text)),
        check=_of_hub,
        licence=lambda text: _licence(Path(_of_hub(text).model) if _of_hub(text).is_folder else _of_hub(text).model),
    ),
)
