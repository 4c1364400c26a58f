"""Bad input of every kind: each with its outcome, and after each the run ends with the good samples all there."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from mobileclip.data import AugmentationSpec, read_card, read_reinforced_samples, read_samples, write_shard
from mobileclip.engines import SET_ASIDE, FatalError, InlineEngine, read_set_aside
from mobileclip.reinforce import ReinforcementSpec, reinforce, verify
from mobileclip.serialization import to_json
from tests.build.image_files import encoded
from tests.data.made_samples import write_raw
from tests.errors import fails, told
from tests.preloaded import preloaded
from tests.reinforce.conftest import AT_ONCE, picture, plain_sample

POLICY = AugmentationSpec(size=32, reference_size=32, scale=(0.3, 1.0))


def pixels() -> Image.Image:
    return Image.open(io.BytesIO(picture(0)))


def turned() -> bytes:
    """An image that its EXIF says to turn: stored crops are of the pixels as they are encoded."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(pixels(), "JPEG", exif=exif.tobytes())


def bomb() -> bytes:
    """A picture that says it is so large; what lies behind its header is of another, and not for anybody to read."""
    small = encoded(Image.new("1", (1, 1)), "PNG")
    header = b"IHDR" + struct.pack(">II", 30000, 30000) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


GOOD = {"png": picture(1), "txt": b"a good picture"}

# Members of a sample, or what makes one, and why it is left out; None where it is used.
SAMPLES = {
    "broken JPEG": ({"jpg": encoded(pixels(), "JPEG")[:200], "txt": b"x"}, "image_truncated"),
    "no image at all": ({"jpg": b"this is text", "txt": b"x"}, "image_not_an_image"),
    "CMYK": ({"jpg": encoded(pixels().convert("CMYK"), "JPEG"), "txt": b"x"}, None),
    "palette with alpha": (
        {"png": encoded(pixels().quantize(16), "PNG", transparency=0), "txt": b"x"},
        None,
    ),
    "EXIF rotation": ({"jpg": turned(), "txt": b"x"}, None),
    "grey": ({"jpg": encoded(pixels().convert("L"), "JPEG"), "txt": b"x"}, None),
    "16 bits": ({"png": encoded(Image.fromarray(np.full((20, 20), 40000, np.uint16)), "PNG"), "txt": b"x"}, None),
    "1x1": ({"png": encoded(Image.new("RGB", (1, 1), "red"), "PNG"), "txt": b"x"}, None),
    "1 pixel wide": ({"png": encoded(Image.new("RGB", (1, 500), "red"), "PNG"), "txt": b"x"}, None),
    "30000x30000": ({"png": bomb(), "txt": b"x"}, "image_too_large"),
    "empty caption": ({"png": picture(2), "txt": b""}, "no_caption"),
    "blank caption": ({"png": picture(2), "txt": b" \n"}, "no_caption"),
    "missing caption": ({"png": picture(2)}, "missing_member"),
    "caption in JSON": ({"png": picture(2), "json": b'{"caption": "x"}'}, None),
    "non-UTF-8 caption": ({"png": picture(2), "txt": b"caf\xe9"}, "bad_text"),
    "broken JSON": ({"png": picture(2), "txt": b"x", "json": b"{"}, "bad_json"),
    "missing image": ({"txt": b"x"}, "missing_image"),
    "empty image": ({"jpg": b"", "txt": b"x"}, "image_not_an_image"),
}
if features.check("webp"):
    SAMPLES["webp"] = ({"webp": encoded(pixels(), "WEBP"), "txt": b"x"}, None)


def write_tar(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> Path:
    write_raw(path, [(f"{key}.{kind}", data) for key, members in samples for kind, data in members.items()])
    return path


def run(shards, output, teachers, captioner=None, **choices):
    choices = {"augmentation": POLICY, "num_augmentations": 2, **choices}
    spec = ReinforcementSpec(source=shards, output=output, **choices)
    engine = InlineEngine(retries=AT_ONCE)
    return reinforce(spec, engine=engine, teachers=teachers, captioner=captioner, show_progress=False)


def keys(directory: Path) -> list[str]:
    return [sample.key for sample in read_reinforced_samples(sorted(directory.glob("*.tar")))]


@pytest.mark.parametrize("name", SAMPLES)
def test_samples(name, teachers, tmp_path):
    members, reason = SAMPLES[name]
    shard = write_tar(tmp_path / "0.tar", [("before", GOOD), ("odd", members), ("after", GOOD)])
    report = run(shard, tmp_path / "out", teachers)
    assert keys(tmp_path / "out") == (["before", "odd", "after"] if reason is None else ["before", "after"])
    assert report.skipped == ({} if reason is None else {reason: 1})
    checked = verify(tmp_path / "out", teachers=teachers, show_progress=False)
    assert checked.is_good, checked


class Seeing:
    """A captioner that writes what it sees."""

    name, weights_sha256, num_captions = "seeing", "0" * 64, 1

    def caption(self, images, seeds):  # noqa: ARG002 - as a `Captioner` does
        return [(f"{image.size} {image.getpixel((0, 0))}",) for image in images]


@pytest.mark.parametrize("has_teachers", [False, True])
def test_a_captioner_sees_what_a_person_does_whatever_teachers_there_are(teachers, tmp_path, has_teachers):
    """Upright, and not on the background of teachers, who see pixels as they are encoded."""
    clear = Image.new("RGBA", (40, 32), (10, 20, 30, 0))
    members = [{"jpg": turned(), "txt": b"x"}, {"png": encoded(clear, "PNG"), "txt": b"x"}]
    shard = write_tar(tmp_path / "0.tar", [(f"{number}", one) for number, one in enumerate(members)])
    made = run(shard, tmp_path / "out", teachers if has_teachers else None, captioner=Seeing())
    lying, transparent = (sample.syn_captions["syn_text"][0] for sample in read_samples(made.shards))
    assert lying.startswith("(32, 40)")
    assert transparent == "(40, 32) (10, 20, 30)"


def test_a_key_that_comes_twice(teachers, tmp_path):
    shard = write_tar(tmp_path / "0.tar", [("one", GOOD), ("two", GOOD), ("one", GOOD)])
    assert run(shard, tmp_path / "out", teachers).skipped == {"duplicate_key": 1}
    assert keys(tmp_path / "out") == ["one", "two"]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_truncated_shard(teachers, tmp_path, share):
    samples = [(f"{index}", {**GOOD, "png": picture(index)}) for index in range(8)]
    whole = write_tar(tmp_path / "0.tar", samples).read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: int(len(whole) * share) // 512 * 512 + 100])
    write_tar(tmp_path / "1.tar", [("fine", GOOD)])
    report = run([tmp_path / "0.tar", tmp_path / "1.tar"], tmp_path / "out", teachers)
    found = keys(tmp_path / "out")
    assert found == [*(f"{index}" for index in range(len(found) - 1)), "fine"]
    assert report.skipped.get("truncated_shard") == 1


def test_an_empty_and_a_foreign_file(teachers, tmp_path):
    (tmp_path / "0.tar").write_bytes(b"")
    (tmp_path / "1.tar").write_bytes(b"<html>404</html>" * 100)
    write_tar(tmp_path / "2.tar", [("fine", GOOD)])
    report = run(tmp_path / "{0..2}.tar", tmp_path / "out", teachers)
    assert keys(tmp_path / "out") == ["fine"]
    assert report.skipped == {}
    assert {aside.unit for aside in report.set_aside} == {"0.tar", "1.tar"}
    assert all(aside.tries == 1 and "unreadable_shard" in aside.reason for aside in report.set_aside)
    assert read_set_aside(tmp_path / "out") == report.set_aside


def test_an_unreadable_shard_is_tried_again_next_time(teachers, tmp_path):
    (tmp_path / "0.tar").mkdir()
    write_tar(tmp_path / "1.tar", [("fine", GOOD)])
    with fails(ValueError, "0.tar"):
        run(tmp_path / "{0..1}.tar", tmp_path / "out", teachers)
    (tmp_path / "0.tar").rmdir()
    write_tar(tmp_path / "0.tar", [("late", GOOD)])
    run(tmp_path / "{0..1}.tar", tmp_path / "out", teachers)
    assert keys(tmp_path / "out") == ["late", "fine"]


def test_an_embedding_that_is_nan_costs_one_sample(teachers, tmp_path):
    """White images overflow in the first teacher, as unusual ones do in low precision."""
    teachers.teachers[0].clip.model.image_encoder.register_forward_hook(
        lambda _, images, found: torch.where(
            (images[0][:, 0].flatten(1).std(1) < 1e-6)[:, None], torch.tensor(float("inf")), found
        )
    )
    white = {"png": encoded(Image.new("RGB", (40, 32), "white"), "PNG"), "txt": b"x"}
    samples = [(f"{index}", {**GOOD, "png": picture(index)}) for index in range(5)]
    shard = write_tar(tmp_path / "0.tar", [*samples[:3], ("white", white), *samples[3:]])
    report = run(shard, tmp_path / "out", teachers, augmentation=AugmentationSpec(size=32, num_operations=0))
    assert report.skipped == {"not_finite": 1}
    assert keys(tmp_path / "out") == ["0", "1", "2", "3", "4"]
    named = json.loads((tmp_path / "out" / "skipped" / "0.tar.jsonl").read_text())
    assert named["key"] == "white"
    assert "teacher first" in named["detail"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose reading fails")
def test_a_file_that_fails_when_it_is_read(teachers, tmp_path):
    """As a broken disk does: there, of a size, and no byte comes."""
    (tmp_path / "0.tar").symlink_to("/proc/self/mem")
    write_tar(tmp_path / "1.tar", [("fine", GOOD)])
    report = run(tmp_path / "{0..1}.tar", tmp_path / "out", teachers)
    assert [aside.unit for aside in report.set_aside] == ["0.tar"]
    assert keys(tmp_path / "out") == ["fine"]
    (tmp_path / "0.tar").unlink()
    write_tar(tmp_path / "0.tar", [("late", GOOD)])
    assert run(tmp_path / "{0..1}.tar", tmp_path / "out", teachers).set_aside == ()
    assert keys(tmp_path / "out") == ["late", "fine"]
    assert not (tmp_path / "out" / SET_ASIDE).exists()


def test_a_teacher_that_gives_nan_stops_the_run_and_keeps_what_is_done(teachers, tmp_path):
    shards = [write_tar(tmp_path / f"{index}.tar", [(f"{index}", GOOD)]) for index in range(2)]
    run(shards[:1], tmp_path / "out", teachers)
    teachers.teachers[0].clip.model.image_encoder[-1].bias.data.fill_(float("nan"))
    with fails(FatalError, "1.tar", "first"):
        run(shards, tmp_path / "out", teachers)
    assert keys(tmp_path / "out") == ["0"]


FULL_DISK = """
import resource, signal, sys
from mobileclip.reinforce import ReinforcementSpec, reinforce
from mobileclip.serialization import from_json
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
spec = from_json(open(sys.argv[1]).read(), ReinforcementSpec)
try:
    reinforce(spec, show_progress=False)
except ValueError as error:
    print(error)
    raise SystemExit(3)
"""


def test_a_full_disk_stops_the_run_and_space_lets_it_go_on(small_teachers, tmp_path):
    """A limit of the file size stands for the disk: the write fails in the same call with an error of the same kind."""
    write_shard(tmp_path / "0.tar", [plain_sample("small", 1)])
    write_shard(tmp_path / "1.tar", [plain_sample(f"large-{index}", index) for index in range(40)])
    spec = ReinforcementSpec(
        source=tmp_path / "{0..1}.tar",
        output=tmp_path / "out",
        teachers=small_teachers,
        augmentation=POLICY,
        num_augmentations=2,
    )
    (tmp_path / "spec.json").write_text(to_json(spec))
    called = ("tests.preloaded:python", "-c", FULL_DISK, str(tmp_path / "spec.json"), "60000")
    stopped = preloaded().call(*called, folder=tmp_path)
    assert stopped.status == 3, stopped.output
    told(stopped.output, "out/1.tar could not be written", "File too large", "run this again")
    assert keys(tmp_path / "out") == ["small"]
    assert reinforce(spec, show_progress=False).num_done_before == 1
    assert len(keys(tmp_path / "out")) == read_card(tmp_path / "out").num_samples == 41
