"""Your own loss, task and export target, registered under names for specs, commands and JSON.

    mobileclip train mine.py --import examples/models/own_work.py
    mobileclip eval my_s2.pt neighbours --data pictures/ --import examples/models/own_work.py
    mobileclip export my_s2.pt --target zipped_torch -o out/ --import examples/models/own_work.py

An installed package needs no `--import`, but entry points in the groups `mobileclip.loss`, `mobileclip.evaluation_task`
and `mobileclip.export_target`.
"""

import gzip
import tempfile
from pathlib import Path

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from mobileclip.evaluation import Benchmark, DatasetResult, Features, Session, open_benchmark
from mobileclip.evaluation.data import fingerprint
from mobileclip.evaluation.intervals import outcomes_of
from mobileclip.evaluation.tasks.task import Task, TaskEntry, evaluation_tasks
from mobileclip.export import targets
from mobileclip.export.contract import TowerFile
from mobileclip.export.targets import Run, TorchTarget, WrittenFile
from mobileclip.export.towers import TowerExport
from mobileclip.losses import LossSpec, LossTerms, losses


@losses.register("hinge")
@attrs.frozen(kw_only=True)
class HingeLossSpec(LossSpec):
    """A loss that separates every pair from the hardest negative by a margin; VSE++ (arXiv 1707.05612)."""

    margin: float = 0.2
    needs_teachers = False

    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> nn.Module:
        """Return the loss for one process's own batch."""
        assert process_group is None, "the loss does not support pairs from other processes"
        return HingeLoss(self.margin)


class HingeLoss(nn.Module):
    """The mean of `max(0, margin + hardest negative - positive)` over rows and columns of the similarities."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, *, image: Tensor, text: Tensor, logit_scale: Tensor) -> LossTerms:
        """Return the loss; the logit scale has a factor of 0, only to get a gradient."""
        similarity = image @ text.T
        positive = similarity.diagonal()
        others = similarity - 4 * torch.eye(len(image), device=image.device)  # a pair is not its own negative
        terms = [(self.margin + others.amax(dim) - positive).relu().mean() for dim in (0, 1)]
        total = terms[0] + terms[1] + 0 * logit_scale
        return LossTerms(contrastive=total, distillation=torch.zeros_like(total), total=total)


@attrs.frozen(kw_only=True)
class NeighboursTask(Task):
    """The share of images whose nearest neighbour has the same class: the quality of image embeddings without texts."""

    key: str
    data: Benchmark

    def content(self) -> str:
        """Return a hash of the images and their classes."""
        return fingerprint(self.data)

    def features(self, session: Session) -> Features:
        """Return the embeddings of the images, which the session caches."""
        return session.image_features(self.data)

    def score(self, features: Features) -> DatasetResult:
        """Return the share of images whose nearest neighbour has the same class."""
        image = F.normalize(features.image, dim=1)
        nearest = (image @ image.T - 4 * torch.eye(len(image))).argmax(dim=1)
        hits = (features.labels[nearest] == features.labels).float()
        return DatasetResult(
            key=self.key,
            dataset="neighbours",
            metrics={"main_metric": float(hits.mean())},
            num_images=len(hits),
            num_skipped=features.report.num_skipped,
            report=features.report,
            outcomes=outcomes_of(features.keys, hits.numpy()),
        )


def folder_given(key: str, data: str | None) -> str:
    """Return the source of the images: `--data` is a folder with one subfolder per class."""
    if data is None:
        raise ValueError(f"{key} needs --data: a folder with one subfolder of images per class")
    return data


evaluation_tasks.add(
    "neighbours",
    TaskEntry(
        name="neighbours",
        place=folder_given,
        opener=lambda found, _: NeighboursTask(key=found.key, data=open_benchmark(found.path)),
    ),
)


@attrs.frozen
class ZippedTorchTarget(TorchTarget):
    """A gzipped program of `torch.export`, for transfer over a network."""

    suffix: str = ".pt2.gz"

    def export(self, tower: TowerExport, path: Path) -> WrittenFile:
        """Write one tower as a gzipped program."""
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder, "tower.pt2")
            written = super().export(tower, plain)
            path.write_bytes(gzip.compress(plain.read_bytes()))
        return written

    def open(self, path: Path, tower: TowerFile, *, device: str = "cpu", num_threads: int | None = None) -> Run:
        """Return a function that runs an exported file with PyTorch."""
        with tempfile.TemporaryDirectory() as folder:
            return super().open(unzipped(path, Path(folder)), tower, device=device, num_threads=num_threads)


def unzipped(path: Path, folder: Path) -> Path:
    """Decompress a file into a folder, and return the new file."""
    plain = folder / "tower.pt2"
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    return plain


targets.add("zipped_torch", ZippedTorchTarget())
