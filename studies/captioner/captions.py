"""Trains the captioners and writes their captions once, with the library's own training and reinforcement."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
from torch import Tensor

from examples.quickstart.emoji.joint import JointTeacher
from examples.quickstart.emoji.on_disk import DataSplit
from examples.quickstart.emoji.splits import chance
from mobileclip.data import ImageTextSample, ImageTransform, crop_augmentation, read_samples, write_shards
from mobileclip.reinforce import CheckpointCaptioner, ReinforcementSpec, reinforce
from mobileclip.storage import write_text
from mobileclip.terminal import console
from mobileclip.training import run
from studies.captioner.caption_metrics import agreement, distinct_ngrams, mean_words, names_recalled
from studies.captioner.spec import ARMS, WRITERS, Arm, CaptionerStudySpec, Line, Writer, write_start
from studies.learning_efficiency.scoring import pixels_of

WRITTEN = "syn_text_written"
_PER_SHARD, _MAX_BATCH = 500, 64


@attrs.frozen(kw_only=True)
class Part:
    """Images of a split with other captions, in the form of the study of learning efficiency.

    Args:
        kept: the samples.
    """

    kept: tuple[ImageTextSample, ...]

    def samples(self) -> Iterator[ImageTextSample]:
        """Yield the samples."""
        return iter(self.kept)


def shards_of(spec: CaptionerStudySpec, split: DataSplit, writer: Writer | None) -> tuple[str, ...]:
    """Return the shards of a captioner's or of the students' images, written once."""
    folder = spec.output / "pictures" / ("students" if writer is None else f"captioner-{writer.share:g}")
    if not (folder / "done").exists():
        own = [one for one in split.samples() if (one.metadata["set"] in spec.captioner_sets) == (writer is not None)]
        own.sort(key=lambda one: chance(spec.seed, "captioner", one.key))
        own = own[: spec.num_pictures if writer is None else max(1, round(writer.share * len(own)))]
        write_shards(folder, own, samples_per_shard=_PER_SHARD if len(own) > 4 * _PER_SHARD else max(1, len(own) // 4))
        write_text(folder / "done", f"{len(own)}\n")
    return tuple(sorted(map(str, folder.glob("*.tar"))))


def trained(spec: CaptionerStudySpec, split: DataSplit, writer: Writer) -> Path:
    """Train a captioner, or resume its training, and return its file."""
    shards = shards_of(spec, split, writer)
    whole = int((Path(shards_of(spec, split, Writer())[0]).parent / "done").read_text(encoding="utf-8"))
    output = spec.output / "captioners" / writer.name
    file = output / "model.safetensors"
    if file.exists():
        return file
    start = spec.output / "captioners" / f"{writer.name}.start.safetensors"
    if not start.exists():
        write_start(spec.captioner(writer), start, seed=spec.seed)
    run(spec.training(writer, shards, whole, start), output, device="cpu", title=writer.name, console=console())
    return file


def written(spec: CaptionerStudySpec, split: DataSplit, arm: Arm, writer: Writer) -> tuple[ImageTextSample, ...]:
    """Return the students' images with a captioner's captions as a set next to the template captions, written once."""
    folder = spec.output / "written" / f"{writer.name}-{arm.num_captions}-{arm.temperature:g}"
    captioner = CheckpointCaptioner(
        checkpoint=str(trained(spec, split, writer)),
        num_captions=arm.num_captions,
        temperature=arm.temperature,
        max_length=min(24, writer.context),
        max_batch=_MAX_BATCH,
    )
    reinforce(
        ReinforcementSpec(
            source=shards_of(spec, split, None),
            output=str(folder),
            captioner=captioner,
            caption_set=WRITTEN,
            augmentation=crop_augmentation(spec.captioner_size),
            seed=spec.seed,
            batch_size=_MAX_BATCH,
        )
    )
    return tuple(read_samples(sorted(map(str, folder.glob("*.tar")))))


def part_of(spec: CaptionerStudySpec, split: DataSplit, arm: Arm) -> Part:
    """Return the students' images with an arm's captions as their synthetic captions."""
    if not arm.has_writers:
        return Part(kept=tuple(read_samples(shards_of(spec, split, None))))
    kept = []
    for same in zip(*(written(spec, split, arm, WRITERS[one]) for one in arm.writers), strict=True):
        composed = same[0].syn_captions["syn_text"] if arm.captions == "both" else ()
        own = [caption for one in same for caption in one.syn_captions[WRITTEN]]
        kept.append(attrs.evolve(same[0], syn_captions={"syn_text": (*composed, *own)}))
    if arm.is_shuffled:
        # In random order, each image gets the captions of the previous image, so that no image has its own captions.
        kept.sort(key=lambda one: chance(spec.seed, "shuffled", one.key))
        kept = [attrs.evolve(one, syn_captions=kept[place - 1].syn_captions) for place, one in enumerate(kept)]
    return Part(kept=tuple(kept))


def judged(
    spec: CaptionerStudySpec, split: DataSplit, name: str, part: Part, teacher: JointTeacher | None = None
) -> Line:
    """Return a result line for an arm's captions: words, recalled names, distinct n-grams, and fit to the images.

    The line has separate counts for names that are also in the captioners' images.

    Args:
        spec: settings of the study.
        split: the pictures.
        name: name of the arm.
        part: images and captions of the arm.
        teacher: teacher that measures the fit; None skips the measurement.
    """
    arm, started = ARMS[name], time.monotonic()
    texts = [_texts(arm, one) for one in part.kept]
    names = [one.metadata["label"] for one in part.kept]
    writers = [WRITERS[one] for one in arm.writers] if arm.has_writers else []
    known = {one.metadata["label"] for writer in writers for one in read_samples(shards_of(spec, split, writer))}
    both = [(text, label) for text, label in zip(texts, names, strict=True) if label in known]
    fit = agreement(_embedded(teacher, part), texts, teacher.encode_texts) if teacher else None
    return Line(
        study=spec.study,
        arm=name,
        kind="captions",
        values={
            "pictures": len(texts),
            "words": mean_words(texts),
            "names_recalled": names_recalled(texts, names),
            **({"known_names_recalled": names_recalled(*zip(*both, strict=True))} if both else {}),
            **{f"distinct_{n}": distinct_ngrams(texts, n) for n in (1, 2)},
            **({"cosine": fit.cosine, "found": fit.found} if fit else {}),
        },
        seconds=round(time.monotonic() - started, 1),
    )


def _embedded(teacher: JointTeacher, part: Part) -> Tensor:
    """Return a teacher's embeddings of images."""
    images = [one.image for one in part.kept if one.image is not None]
    return teacher.encode_images(pixels_of(images, ImageTransform(teacher.image)))


def examples(parts: Sequence[tuple[str, Part]], count: int = 4) -> list[tuple[str, str, str]]:
    """Return names of images with the first caption of each arm."""
    return [(one.metadata["label"], arm, _texts(ARMS[arm], one)[0]) for arm, part in parts for one in part.kept[:count]]


def _texts(arm: Arm, sample: ImageTextSample) -> Sequence[str]:
    """Return an arm's synthetic captions, or the keywords if the arm has no synthetic captions."""
    return sample.captions if arm.captions == "none" else sample.syn_captions["syn_text"]
