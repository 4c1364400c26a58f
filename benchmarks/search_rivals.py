"""What indexing photographs costs beside other ways to embed them: clip-retrieval, sentence-transformers, and `embed`.

Command:   python -m benchmarks search_rivals --clip-retrieval A/bin/python --sentence-transformers B/bin/python
Hardware:  any CPU with nothing else to do; one thread a process
Time:      ten minutes on one core; an hour with --num-pictures 5000
Result:    processor time of a photograph of 3 megapixels, by way; whole commands, with all that they load and try

A and B are environments with these packages and open_clip 3; clip-retrieval asks for an older one and works with it.
The weights are random and the same in one file for all, in training form, as published ones are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import attrs
import torch
from attrs import validators

from benchmarks.collection import CollectionBenchSpec, draw_photographs
from benchmarks.harness import Bench, Case, Row, Value, seconds_of
from benchmarks.rivals import PUBLISHED, Size
from mobileclip.encoders import save_model

_CLIP_RETRIEVAL = """
import sys
import torch
from clip_retrieval.clip_inference.main import main
torch.set_num_threads(1)
photos, weights, model, output = sys.argv[1:]
main(photos, output, input_format="files", enable_text=False, batch_size=32, num_prepro_workers=1,
     clip_model=f"open_clip:{model}/{weights}", output_partition_count=1)
"""

_SENTENCE_TRANSFORMERS = """
import sys
from pathlib import Path
import numpy as np
import open_clip
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
torch.set_num_threads(1)
photos, weights, name, output = sys.argv[1:]
clip, _, transform = open_clip.create_model_and_transforms(name, pretrained=weights)

class Pictures(torch.nn.Module):
    modalities = ["image"]

    def __init__(self):
        super().__init__()
        self.clip = clip

    def preprocess(self, images, *_, **__):
        return {"pixels": torch.stack([transform(image) for image in images])}

    tokenize = preprocess

    def forward(self, features, **_):
        return {**features, "sentence_embedding": self.clip.encode_image(features["pixels"])}

model = SentenceTransformer(modules=[Pictures()], device="cpu")
paths = sorted(Path(photos).iterdir())
rows = []
for start in range(0, len(paths), 32):
    photographs = [Image.open(path, formats=["JPEG"]) for path in paths[start : start + 32]]
    rows.append(model.encode(photographs, batch_size=32, normalize_embeddings=True, show_progress_bar=False))
np.save(output, np.concatenate(rows))
"""


@attrs.frozen(kw_only=True)
class SearchRivalsSpec(Bench):
    """What to compare.

    Args:
        size: of the model.
        num_pictures: photographs.
        num_drawn: of them that differ; the others are copies with other bytes behind the picture, which are decoded and
            encoded as well.
        width: of a photograph in pixels; it is three quarters as high.
        clip_retrieval: a Python that has it; left out without one.
        sentence_transformers: a Python that has it; left out without one.
    """

    size: Size = "s0"
    num_pictures: int = attrs.field(default=1000, validator=validators.gt(1))
    num_drawn: int = attrs.field(default=100, validator=validators.gt(0))
    width: int = 2048
    clip_retrieval: Path | None = None
    sentence_transformers: Path | None = None

    smallest: ClassVar[Mapping[str, object]] = {"num_pictures": 2, "num_drawn": 2, "width": 64}

    def cases(self) -> Iterator[Case]:
        """Yield all ways on the same photographs."""
        yield Case(labels={"photographs": f"{self.num_pictures:,}"}, measure=partial(measure, self))


def write_photographs(folder: Path, spec: SearchRivalsSpec) -> None:
    """Write as many photographs as are asked for, few of which are drawn."""
    drawn = draw_photographs(folder, CollectionBenchSpec(num_pictures=spec.num_drawn, width=spec.width))
    contents = [path.read_bytes() for path in drawn]
    for number in range(len(drawn), spec.num_pictures):
        copy = contents[number % len(contents)] + number.to_bytes(4, "little")
        (folder / f"{number:05d}.jpg").write_bytes(copy)


def ways(folder: Path, spec: SearchRivalsSpec) -> dict[str, Sequence[str]]:
    """Write photographs and weights, and return the commands that embed them, by way."""
    (folder / "photos").mkdir()
    write_photographs(folder / "photos", spec)
    published = PUBLISHED[spec.size]
    torch.manual_seed(0)
    weights = folder / "open_clip_pytorch_model.bin"
    save_model(published.spec().build(), weights, layout="open_clip")
    photos = str(folder / "photos")
    mine = (sys.executable, "-m", "mobileclip")
    same = ("-c", str(weights), "-j", "1", "--device", "cpu")
    rival = (photos, str(weights), published.open_clip)
    found: dict[str, Sequence[str]] = {
        "mobileclip index": (*mine, "index", photos, "--index", str(folder / "index"), "--quiet", *same),
        "mobileclip embed": (*mine, "embed", photos, "-o", str(folder / "embed.npz"), *same),
    }
    if spec.clip_retrieval is not None:
        found["clip-retrieval"] = (str(spec.clip_retrieval), "-c", _CLIP_RETRIEVAL, *rival, str(folder / "retrieval"))
    if spec.sentence_transformers is not None:
        python = str(spec.sentence_transformers)
        found["sentence-transformers"] = (python, "-c", _SENTENCE_TRANSFORMERS, *rival, str(folder / "sentences.npy"))
    return found


def _run(command: Sequence[str], folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with (folder / "said.txt").open("w", encoding="utf-8") as said:
        status = subprocess.run(command, env=environment, stdout=said, stderr=said, check=False).returncode  # noqa: S603
    if status:
        raise SystemExit(
            f"{command[0]} failed: {(folder / 'said.txt').read_text(encoding='utf-8', errors='replace')[-2000:]}"
        )


def measure(spec: SearchRivalsSpec) -> list[Row]:
    """Return what a photograph takes, by way, and over what `mobileclip index` takes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = {way: seconds_of(partial(_run, command, folder)).cpu for way, command in ways(folder, spec).items()}
    index = seconds["mobileclip index"]
    return [
        Row(
            case={"way": way},
            values={
                "a photograph": Value(number=1000 * one / spec.num_pictures, unit="ms"),
                "over index": Value(number=one / index),
            },
        )
        for way, one in seconds.items()
    ]
