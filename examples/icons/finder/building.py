"""Builds the finder as a folder for any static server: renders, embeds, reduces and packs the icons."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import validators
from safetensors.torch import load_file, save, save_file
from torch import Tensor

import mobileclip
from examples.icons.dataset import IconDataSpec
from examples.icons.finder.page import SCRIPTS, STATIC, bundle, copy_sources
from examples.icons.finder.reducing import Reduced, pack_towers, recall, with_rounded_tokens
from examples.icons.reading import Icon, IconSet, read_sets
from examples.icons.sets import ALL_SETS, FREE_SETS
from examples.icons.splits import TEST_NAMES, TITLES
from examples.quickstart.emoji.on_disk import claim, is_finished, load_finished
from examples.quickstart.emoji.rendering import render_sets
from examples.quickstart.emoji.sources import download
from mobileclip import ImageTextModel
from mobileclip.progress import track
from mobileclip.serialization import from_json
from mobileclip.storage.atomic import atomic_folder, atomic_path
from mobileclip.tensor_files.weights import weights_sha256

MODEL = "icons-multilingual"
REPORT = "report.json"
_BATCH = 64
# Translations of common words of interfaces, which are missing in the emoji texts of the model's training.
_WORDS = Path(__file__).with_name("words.json")
# A best score fewer standard deviations above the mean of all icons is a weak match. Chosen on 164 names that training
# never saw, among 15,131 icons of eight sets: the page reports a weak match for 53 % of the names without their drawing
# among the first five, and for 17 % of the other names.
WEAK = 3.4
_OWN, _SHARED = ("index.html", "finder.css"), ("search.css", "icon.svg")
# Files of the first load.
_SHELL = (*_OWN, *_SHARED, "finder.js", "index.bin", "catalogue.bin")


def _known(_: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    names = [one.name for one in ALL_SETS]
    if not value or len(set(value)) < len(value) or not set(value) <= set(names):
        raise ValueError(f"{attribute.name} must be different names of {', '.join(names)}; got {', '.join(value)}")


@attrs.frozen(kw_only=True)
class FinderSpec:
    """Settings of the finder.

    Args:
        output: folder of the finder, which a build replaces.
        data: folder for packages, renderings and embeddings: a folder of `python -m examples.icons`, or a new folder.
        sets: icon sets to use.
        dims: width of the vectors on the page.
        icons_per_file: number of drawings per file; a file holds similar drawings.
        num_processes: number of drawings to render in parallel.

    Raises:
        ValueError: if a number is out of range, or a set is unknown.
    """

    output: Path = Path("build/finder")
    data: Path = Path("outputs/icons")
    sets: tuple[str, ...] = attrs.field(default=tuple(one.name for one in FREE_SETS), validator=_known)
    dims: int = attrs.field(default=32, validator=[validators.ge(1), validators.le(256)])
    icons_per_file: int = attrs.field(default=64, validator=validators.ge(1))
    num_processes: int = attrs.field(default=2, validator=validators.ge(1))


def build_finder(spec: FinderSpec) -> dict[str, Any]:
    """Download, render, embed and write the finder; return statistics. A second call skips finished steps.

    Args:
        spec: settings of the finder.

    Raises:
        ValueError: if the network or npm fails.
        OSError: if the finder cannot be written.
    """
    began = time.perf_counter()
    choices = spec.data / "spec.json"
    if not choices.exists():
        claim(spec.data, attrs.evolve(IconDataSpec(), output=Path()))
    data = from_json(choices.read_text(encoding="utf-8"), IconDataSpec)
    styles = [one for one in ALL_SETS if one.name in spec.sets]
    work = copy_sources(spec.data / "finder")
    sets = read_sets(download(spec.data / "download", styles), styles, max_words=data.max_words, seed=data.seed)
    drawings = {one.style.name: {icon.key: (icon.name, icon.svg) for icon in one.icons} for one in sets}
    rendered = render_sets(spec.data / "renderings", drawings, data.image_size, num_processes=spec.num_processes)
    clip = mobileclip.load(MODEL)
    icons = [icon for one in sets for icon in one.icons if icon.key in rendered[one.style.name]]
    pngs = {name: [several[one.key].png for one in icons if one.set_name == name] for name, several in rendered.items()}
    images = torch.cat([_embed(clip, work / f"{name}.safetensors", several) for name, several in pngs.items()])
    reduced = Reduced.of(images, min(spec.dims, images.shape[1]))
    order = alike(reduced.vectors.float() * reduced.matrix.norm(dim=1), spec.icons_per_file)
    figures = _recall(spec.data, clip, icons, images, reduced)
    with atomic_folder(spec.output, overwrite=True) as folder:
        report = _write(folder, spec, sets, [icons[one] for one in order], reduced, order, clip, work)
        report |= {"without_picture": sum(len(one.icons) for one in sets) - len(icons)}
        report |= {"seconds": round(time.perf_counter() - began, 1), "recall": figures}
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


@torch.inference_mode()
def _embed(clip: ImageTextModel, path: Path, pngs: Sequence[bytes]) -> Tensor:
    """Return the embeddings of images from a cache file; embed again if the images changed."""
    digest = sha256(b"".join((weights_sha256(clip.model.state_dict()).encode(), *pngs))).hexdigest()
    if path.exists() and digest in (kept := load_file(path)):
        return kept[digest]
    batches = [pngs[start : start + _BATCH] for start in range(0, len(pngs), _BATCH)]
    tracked = track(batches, total=len(batches), title=f"embedding {path.stem}", unit="batches")
    images = torch.cat([clip.encode_image(one) for one in tracked])
    with atomic_path(path) as temporary:
        save_file({digest: images}, temporary)
    return images


def alike(rows: Tensor, size: int) -> list[int]:
    """Return an order of rows with similar rows in each run of `size`, by recursive halving along the widest dimension.

    Shape:
        rows: (rows, dims).
    """
    found: list[int] = []
    waiting = [torch.arange(len(rows))]
    while waiting:
        some = waiting.pop()
        if len(some) <= size:
            found += some.tolist()
            continue
        widest = rows[some].var(dim=0).argmax()
        some = some[rows[some, widest].argsort(stable=True)]
        # All runs but the last are whole.
        middle = size * -(-len(some) // (2 * size))
        waiting += [some[middle:], some[:middle]]
    return found


def _recall(
    data: Path, clip: ImageTextModel, icons: Sequence[Icon], images: Tensor, reduced: Reduced
) -> list[dict[str, Any]]:
    """Return the recall of held-out names per split, among held-out drawings and among all drawings."""
    if not is_finished(data):
        return []
    held_out = {sample.key for sample in load_finished(data, TITLES).splits[TEST_NAMES].samples()}
    there = [number for number, icon in enumerate(icons) if icon.key in held_out]
    if not there:
        return []
    wanted = sorted({icons[number].name for number in there})
    texts, rounded = clip.encode_text(wanted), with_rounded_tokens(mobileclip.load(MODEL)).encode_text(wanted)
    found = []
    for chosen in (there, list(range(len(icons)))):
        names = [icons[number].name for number in chosen]
        page = recall(rounded @ reduced.matrix.T, reduced.vectors[chosen].float(), wanted, names)
        model = recall(texts, images[chosen], wanted, names)
        found.append({"names": len(wanted), "drawings": len(chosen), "page": page, "model": model})
    return found


def _write(  # noqa: PLR0917  the parts of the folder
    folder: Path,
    spec: FinderSpec,
    sets: Sequence[IconSet],
    icons: Sequence[Icon],
    reduced: Reduced,
    order: Sequence[int],
    clip: ImageTextModel,
    work: Path,
) -> dict[str, Any]:
    towers, tensors = pack_towers(clip, reduced.matrix)
    vectors = reduced.vectors[list(order)].contiguous()
    index = _write_gzipped(folder / "index.bin", save({"vectors": vectors, **tensors}))
    variants = {icon.key: one.variants[icon.name] for one in sets for icon in one.icons}
    numbers = {one.style.name: number for number, one in enumerate(sets)}
    counts = Counter(icon.set_name for icon in icons)
    words = json.loads(_WORDS.read_text(encoding="utf-8"))
    catalogue = {
        "towers": towers,
        "sets": [
            {"name": one.style.name, "title": one.style.title, "number": counts[one.style.name], **one.licence}
            for one in sets
        ],
        "words": {one.casefold(): name for name, several in words.items() for one in several.values()},
        "weak": WEAK,
        "icons_per_file": spec.icons_per_file,
        "icons": [(numbers[one.set_name], one.source, one.name, len(variants[one.key])) for one in icons],
    }
    model = index + _write_gzipped(folder / "catalogue.bin", _json(catalogue))
    for kind in ("drawings", "variants"):
        (folder / kind).mkdir()
    for number, start in enumerate(range(0, len(icons), spec.icons_per_file)):
        some = icons[start : start + spec.icons_per_file]
        _write_gzipped(folder / "drawings" / f"{number}.bin", _json({icon.key: icon.svg for icon in some}))
        several = {icon.key: {one.source: one.svg for one in variants[icon.key]} for icon in some}
        _write_gzipped(folder / "variants" / f"{number}.bin", _json(several))
    for source in (*(work / SCRIPTS / name for name in _OWN), *(work / STATIC / name for name in _SHARED)):
        shutil.copyfile(source, folder / source.name)
    bundle(work, "finder.js", folder / "finder.js")
    digest = sha256(b"".join((folder / name).read_bytes() for name in _SHELL)).hexdigest()[:12]
    defined = {"VERSION": digest, "SHELL": _SHELL}
    bundle(work, "sw.js", folder / "sw.js", *(f"--define:{name}={json.dumps(one)}" for name, one in defined.items()))
    return {
        "icons": len(icons),
        "sets": len(sets),
        "drawings": sum(len(variants[icon.key]) for icon in icons),
        "model_bytes": model,
        "script_bytes": (folder / "finder.js").stat().st_size,
        "first_load_bytes": sum((folder / name).stat().st_size for name in (*_SHELL, "sw.js")),
        **{f"{kind[:-1]}_bytes": _bytes(folder / kind) for kind in ("drawings", "variants")},
    }


def _bytes(folder: Path) -> int:
    return sum(one.stat().st_size for one in folder.iterdir())


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _write_gzipped(path: Path, content: bytes) -> int:
    """Write gzipped data, which the page decompresses, since some servers do not compress; return the file's size."""
    path.write_bytes(gzip.compress(content, mtime=0))
    return path.stat().st_size
