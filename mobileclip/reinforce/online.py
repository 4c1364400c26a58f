"""Teachers that embed every batch during training: the baseline without reinforced data."""

from __future__ import annotations

import attrs
import torch
from PIL import Image

from mobileclip.data import BatchSource, ReinforcedBatch, Tokenizer
from mobileclip.data.loading.batch import ChangedBatches
from mobileclip.data.samples.sample import SYN_TEXT
from mobileclip.reinforce.captioners import Captioner, caption_seed
from mobileclip.reinforce.teachers import TeacherEnsemble


@attrs.frozen(kw_only=True, eq=False)
class OnlineTeachers(ChangedBatches[ReinforcedBatch]):
    """Wraps batches with teachers that embed each of them when it is used; `train` takes it as its batches.

    Args:
        batches: with online images at the teachers' sizes: `OnlinePipelineSpec`.
        teachers: encode the images and the captions of every batch.
        captioner: writes a synthetic caption for every image; None for those of the source. It sees the augmented
            images, at the largest of their sizes.
        tokenizer: the student's, for what the captioner writes.
        seed: of the captions.

    Raises:
        ValueError: while streaming, if the batches lack the images or the captions.

    Source: MobileCLIP, table 4d.
    """

    batches: BatchSource[ReinforcedBatch]
    teachers: TeacherEnsemble
    captioner: Captioner | None = None
    tokenizer: Tokenizer | None = None
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        """Check that captions can become ids."""
        if self.captioner is not None and self.tokenizer is None:
            raise ValueError("a captioner needs the student's tokenizer beside it")

    def changed(self, batch: ReinforcedBatch) -> ReinforcedBatch:
        """Return a batch with embeddings, and captions where there is a captioner."""
        return self._embedded(batch if self.captioner is None else self._captioned(batch, self.captioner))

    def _captioned(self, batch: ReinforcedBatch, captioner: Captioner) -> ReinforcedBatch:
        images = self._images(batch)
        pixels = images[max(images)].permute(0, 2, 3, 1).numpy()
        seeds = [caption_seed(self.seed, key, SYN_TEXT) for key in batch.keys]
        written = captioner.caption([Image.fromarray(one) for one in pixels], seeds)
        captions = tuple(texts[0] for texts in written)
        assert self.tokenizer is not None, "checked when this was made"
        return attrs.evolve(batch, syn_captions=captions, syn_text=self.tokenizer(captions))

    def _embedded(self, batch: ReinforcedBatch) -> ReinforcedBatch:
        if batch.captions is None:
            raise ValueError("the batches hold no captions for the teachers; ask the pipeline for online images")
        texts = [*batch.captions, *(batch.syn_captions or ())]
        text = self.teachers.encode_texts(texts)
        return attrs.evolve(
            batch,
            teacher_image=self.teachers.encode_images(self._images(batch)),
            teacher_text=text[: len(batch)],
            teacher_syn_text=text[len(batch) :] if batch.syn_captions else None,
        )

    def _images(self, batch: ReinforcedBatch) -> dict[int, torch.Tensor]:
        images = dict(batch.online_images or {})
        missing = [size for size in self.teachers.image_sizes if size not in images]
        if missing or not images:
            raise ValueError(
                f"the teachers look at images of {', '.join(map(str, self.teachers.image_sizes))} pixels, and the "
                f"batches hold {', '.join(map(str, images)) or 'none'}; give the pipeline "
                f"online={self.teachers.image_sizes}"
            )
        return images
