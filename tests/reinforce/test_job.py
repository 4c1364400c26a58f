from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mobileclip import storage
from mobileclip.data import (
    LAYOUTS,
    AugmentationSpec,
    SkipReport,
    augmentation_rng,
    decode_image,
    normalize_pixels,
    read_card,
    read_reinforced_samples,
    read_samples,
    write_shard,
)
from mobileclip.engines import InlineEngine
from mobileclip.losses import ReinforcedLossSpec
from mobileclip.reinforce import Manifest, ReinforcementSpec, TeacherEnsemble, reinforce, verify
from tests.build.image_files import encoded
from tests.errors import fails
from tests.reinforce.conftest import lying_teacher, picture, plain_sample
from tests.waiting import wait_for

POLICY = AugmentationSpec(size=32, reference_size=32, scale=(0.3, 1.0), scale_translations=True)


def make_spec(shards, output, **choices) -> ReinforcementSpec:
    choices = {"augmentation": POLICY, "num_augmentations": 3, "seed": 7, "layout": "npz", **choices}
    return ReinforcementSpec(source=shards, output=output, **choices)


def run(spec, teachers, num_threads=2):
    return reinforce(spec, engine=InlineEngine(num_threads=num_threads), teachers=teachers, show_progress=False)


def test_embeddings_are_those_of_the_replayed_augmentations(make_shards, teachers, tmp_path):
    shards = make_shards()
    report = run(make_spec(shards, tmp_path / "out"), teachers)
    assert (report.num_samples, len(report.shards)) == (15, 3)
    for sample, source in zip(read_reinforced_samples(report.shards), read_samples(shards), strict=True):
        image = decode_image(source.image)
        assert (sample.key, sample.image, sample.metadata) == (source.key, source.image, source.metadata)
        assert sample.others == source.others == {"cls": b"3"}
        assert sample.image_sha256 == hashlib.sha256(source.image).hexdigest()
        for index, params in enumerate(sample.augmentations):
            assert params == POLICY.sample(augmentation_rng(7, sample.key, index), image.size)
            expected = []
            for teacher in teachers.teachers:
                policy = attrs.evolve(POLICY, size=teacher.image.size)
                pixels = torch.from_numpy(np.asarray(policy.apply(image, params)).copy()).permute(2, 0, 1)[None]
                with torch.no_grad():
                    embedding = teacher.clip.model.encode_image(normalize_pixels(pixels, teacher.image))
                expected.append(F.normalize(embedding, dim=-1))
            np.testing.assert_allclose(sample.image_emb[index], torch.cat(expected, -1)[0], atol=2e-6)
        synthetic = sample.syn_captions["syn_text"]
        assert (len(sample.captions), len(synthetic)) == (3, 2)
        np.testing.assert_allclose(sample.text_emb, teachers.encode_texts(sample.captions), atol=1e-6)
        np.testing.assert_allclose(sample.syn_text_emb["syn_text"], teachers.encode_texts(synthetic), atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_arguments_give_equal_files(make_shards, teachers, tmp_path, layout):
    shards = make_shards(2, 2)
    first, second = (run(make_spec(shards, tmp_path / one, layout=layout), teachers) for one in ("first", "second"))
    assert [Path(path).read_bytes() for path in first.shards] == [Path(path).read_bytes() for path in second.shards]


def test_threads_change_neither_order_nor_augmentations(make_shards, teachers, tmp_path):
    shards = make_shards()
    threads = torch.get_num_threads()
    alone = run(make_spec(shards, tmp_path / "alone"), teachers, num_threads=1)
    shared = run(make_spec(shards, tmp_path / "shared", batch_size=2), teachers, num_threads=3)
    assert torch.get_num_threads() == threads
    for one, other in zip(read_reinforced_samples(alone.shards), read_reinforced_samples(shared.shards), strict=True):
        assert one.key == other.key
        assert one.augmentations == other.augmentations
        np.testing.assert_allclose(one.image_emb, other.image_emb, atol=2e-6)


def test_the_last_pictures_of_a_shard_are_encoded_beside_the_first_of_the_next(
    make_shards, teachers, tmp_path, monkeypatch
):
    shards = make_shards(2)
    captions = {sample.key: sample.captions[0] for sample in read_samples(shards)}
    encode, the_next_has_begun = TeacherEnsemble.encode_texts, threading.Event()

    def waiting(self, texts):
        if captions["s1-0"] in texts:
            the_next_has_begun.set()
        if captions["s0-4"] in texts:
            assert the_next_has_begun.wait(30)
        return encode(self, texts)

    monkeypatch.setattr(TeacherEnsemble, "encode_texts", waiting)
    before = torch.get_num_threads()
    assert run(make_spec(shards, tmp_path / "out", batch_size=1), teachers).num_samples == 10
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before, "a new thread computes as before"


class StoppedError(BaseException):
    """What ends a run, and is no failure of a unit."""


class Interrupting:
    """An ensemble that counts the batches that it encodes, and stops a run at a caption once something has happened."""

    def __init__(self, teachers: TeacherEnsemble, *, stop_at: str = "", after=lambda: True) -> None:
        self._ensemble, self._stop_at, self._after, self.num_batches = teachers, stop_at, after, 0

    def __getattr__(self, name):
        return getattr(self._ensemble, name)

    def encode_texts(self, texts):
        if self._stop_at in texts:
            # What was encoded before is written by another thread; if it never is, the test fails by what is missing.
            with suppress(AssertionError):
                wait_for(self._after, seconds=60.0)
            raise StoppedError
        self.num_batches += 1
        return self._ensemble.encode_texts(texts)


def run_the_first_shard(spec, teachers: TeacherEnsemble) -> None:
    """Stop a run at the second sample of the second shard, when the first shard is written.

    Both shards share two threads, so while one of them waits here, the other encodes what is left of the first shard.
    """
    first = ["00000000.tar"]
    stopping = Interrupting(teachers, stop_at="picture 11", after=lambda: list(Manifest(spec.output)) == first)
    with pytest.raises(StoppedError):
        run(spec, stopping, num_threads=2)
    assert list(Manifest(spec.output)) == first


def files(directory: Path) -> list[str]:
    everything = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(str(path) for path in everything if path.name != ".lock" and path.parent.name != "run")


def test_an_interrupted_job_continues_and_ends_with_the_same_files(make_shards, teachers, tmp_path):
    shards = make_shards()
    whole = run(make_spec(shards, tmp_path / "whole", batch_size=1), teachers)
    out = tmp_path / "out"
    spec = make_spec(shards, out, batch_size=1)
    run_the_first_shard(spec, teachers)
    expected = ["00000000.tar", "manifest.jsonl", "reinforcement.json"]
    wait_for(lambda: files(out) == expected)  # the thread of the next one ends, too
    counting = Interrupting(teachers)
    report = run(spec, counting, num_threads=1)
    assert (report.num_done_before, counting.num_batches) == (1, 10)
    assert [Path(path).read_bytes() for path in report.shards] == [Path(path).read_bytes() for path in whole.shards]
    assert (out / "reinforcement.json").read_text() == (tmp_path / "whole" / "reinforcement.json").read_text()

    before = [Path(path).stat().st_mtime_ns for path in report.shards]
    again = run(spec, counting)
    assert (again.num_done_before, again.num_samples, counting.num_batches) == (3, 15, 10)
    assert [Path(path).stat().st_mtime_ns for path in again.shards] == before


def test_half_a_line_that_a_killed_job_has_left_is_dropped_and_a_damaged_one_is_named(make_shards, teachers, tmp_path):
    spec, manifest = make_spec(make_shards(num_samples=2), tmp_path / "out"), tmp_path / "out" / "manifest.jsonl"
    whole = run(spec, teachers)
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    report = run(spec, teachers)
    assert (report.num_done_before, report.shards) == (2, whole.shards)
    assert manifest.read_bytes().splitlines(keepends=True) == lines
    manifest.write_bytes(b"{}\n" + manifest.read_bytes())
    with fails(ValueError, "1", "manifest.jsonl", "'shard' is missing"):
        run(spec, teachers)


def test_other_choices_in_the_same_place_are_refused(make_shards, teachers, tmp_path):
    shards = make_shards(1)
    run(make_spec(shards, tmp_path / "out"), teachers)
    said = (tmp_path / "out" / "run" / "status.json").read_bytes()
    with fails(ValueError, "num_augmentations, seed"):
        run(make_spec(shards, tmp_path / "out", num_augmentations=2, seed=8), teachers)
    with fails(ValueError, "layout"):
        run(make_spec(shards, tmp_path / "out", layout="compact"), teachers)
    assert (tmp_path / "out" / "run" / "status.json").read_bytes() == said
    (tmp_path / "out" / "manifest.jsonl").unlink()
    with fails(ValueError, "teachers"):
        run(make_spec(shards, tmp_path / "out"), TeacherEnsemble(teachers.teachers[:1]))
    assert read_card(tmp_path / "out").num_augmentations == 3


def test_bad_samples_are_counted_by_reason_and_remembered(teachers, tmp_path):
    broken = attrs.evolve(plain_sample("broken", 1), image=b"not an image")
    bare = attrs.evolve(plain_sample("bare", 2), image=None)
    samples = [plain_sample("good", 1), broken, bare, plain_sample("fine", 3)]
    shard = write_shard(tmp_path / "a.tar", samples)
    empty = write_shard(tmp_path / "b.tar", [broken])
    spec = make_spec([shard, empty], tmp_path / "out", batch_size=1)
    for done_before in (0, 2):
        report = run(spec, teachers)
        assert report.skipped == {"image_not_an_image": 2, "missing_image": 1}
        assert (report.num_samples, report.num_done_before) == (2, done_before)
        assert [Path(path).name for path in report.shards] == ["a.tar"]
        named = [json.loads(line) for line in (tmp_path / "out" / "skipped" / "a.tar.jsonl").read_text().splitlines()]
        assert {(one["reason"], one["key"]) for one in named} == {
            ("image_not_an_image", "broken"),
            ("missing_image", "bare"),
        }
    skips = SkipReport()
    assert [sample.key for sample in read_reinforced_samples(report.shards, skips)] == ["good", "fine"]
    assert skips.num_skipped == 0


def test_the_card_says_what_the_loss_needs(make_shards, teachers, tmp_path):
    report = run(make_spec(make_shards(1), tmp_path / "out"), teachers)
    card = read_card(tmp_path / "out")
    assert (card.teacher_dims, card.teacher_logit_scales) == ((6, 4), (60.0, 40.0))
    assert (card.augmentation, card.num_samples) == (POLICY, 5)
    assert {"torch", "pillow"} <= set(card.versions)
    loss = ReinforcedLossSpec(teacher_dims=card.teacher_dims, teacher_logit_scales=card.teacher_logit_scales).build()
    samples = list(read_reinforced_samples(report.shards))
    image, text = (
        torch.from_numpy(np.stack(rows))
        for rows in zip(*((one.image_emb[0], one.text_emb[0]) for one in samples), strict=True)
    )
    teacher = {"teacher_image": image, "teacher_text": text}
    # A student that is the first teacher is nearer to them than one that sees the images in another order.
    near, far = (
        loss(image=rows[:, :6], text=text[:, :6], logit_scale=torch.tensor(60.0), **teacher).total
        for rows in (image, image.flip(0))
    )
    assert near < far


def test_a_job_that_stores_nothing_leaves_the_output_to_mended_choices(make_shards, teachers, tmp_path):
    shards, bias = make_shards(1), teachers.teachers[1].clip.model.image_encoder[-1].bias
    good = bias.detach().clone()
    bias.data.fill_(float("nan"))
    with fails(ValueError, "second"):
        run(make_spec(shards, tmp_path / "out"), teachers)
    bias.data.copy_(good)
    with fails(ValueError, "5"):
        run(make_spec(shards, tmp_path / "out"), TeacherEnsemble([lying_teacher()]))
    broken = write_shard(tmp_path / "broken.tar", [attrs.evolve(plain_sample("one", 1), image=b"not an image")])
    with fails(ValueError):
        run(make_spec([broken], tmp_path / "out", seed=8), teachers)
    run(make_spec(shards, tmp_path / "out", seed=9), teachers)
    assert read_card(tmp_path / "out").seed == 9


def test_mistakes_are_named_before_anything_is_done(make_shards, teachers, tmp_path):
    (shard,) = make_shards(1)
    for spec in (
        make_spec([tmp_path / "none.tar"], tmp_path / "nothing"),
        make_spec([shard, shard], tmp_path / "out"),
        make_spec([shard], shard.parent),
    ):
        with fails(ValueError):
            run(spec, teachers)
    # Neither the spec nor the engine has teachers, and there is no captioner.
    for engine in (None, InlineEngine()):
        with fails(ValueError):
            reinforce(make_spec([shard], tmp_path / "out"), engine=engine, show_progress=False)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_progress_reaches_the_end(make_shards, teachers, tmp_path, capsys):
    reinforce(make_spec(make_shards(2), tmp_path / "out"), teachers=teachers)
    assert "reinforcing: 10/10" in capsys.readouterr().err


def test_source_and_output_in_a_store(make_shards, teachers, tmp_path):
    """fsspec's memory file system: the same code path as a bucket's."""
    for path in make_shards(3):
        with storage.atomic_write(f"memory://bucket/plain/{path.name}") as stream:
            stream.write(path.read_bytes())
    spec = make_spec("memory://bucket/plain/{00000000..00000002}.tar", "memory://bucket/out", batch_size=1)
    run_the_first_shard(spec, teachers)
    report = run(spec, teachers, num_threads=1)
    assert (report.num_done_before, report.num_samples) == (1, 15)
    assert read_card("memory://bucket/out").num_samples == 15
    local = run(make_spec(make_shards(3), tmp_path / "local", batch_size=1), teachers, num_threads=1)
    for there, here in zip(report.shards, local.shards, strict=True):
        with storage.open_read(there) as stream:
            assert stream.read() == Path(here).read_bytes()
    assert run(spec, teachers).num_done_before == 3
    checked = verify("memory://bucket/out", teachers=teachers, show_progress=False)
    assert (checked.is_good, checked.num_replayed) == (True, 15), checked


def test_a_folder_and_a_list_of_images(teachers, tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for index in range(5):
        (folder / "deep" / f"{index}.png").write_bytes(picture(index))
        (folder / "deep" / f"{index}.txt").write_text(f"picture {index}")
    rows = [{"image": f"images/deep/{index}.png", "captions": ["one", f"number {index}"]} for index in range(4)]
    lines = [*map(json.dumps, rows), json.dumps({"image": "images/none.png", "caption": "nothing"})]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    first = run(make_spec(folder, tmp_path / "one"), teachers)
    assert (first.num_samples, first.skipped) == (5, {})
    second = run(make_spec(tmp_path / "pairs.jsonl", tmp_path / "two"), teachers)
    assert (second.num_samples, second.skipped) == (4, {"missing_image": 1})
    assert [sample.captions for sample in read_reinforced_samples(second.shards)] == [
        ("one", f"number {index}") for index in range(4)
    ]
    for directory in ("one", "two"):
        assert verify(tmp_path / directory, teachers=teachers, show_progress=False).is_good


def test_an_image_that_the_captioner_cannot_take_costs_itself_alone(teachers, tiny, tmp_path):
    captioner = tiny.captioner.build()
    thin = attrs.evolve(plain_sample("thin", 2), image=encoded(Image.new("RGB", (1, 600000), "red"), "PNG"))
    shard = write_shard(tmp_path / "0.tar", [plain_sample("a", 1), thin, plain_sample("b", 3)])
    report = reinforce(make_spec(shard, tmp_path / "out"), teachers=teachers, captioner=captioner, show_progress=False)
    assert report.skipped == {"image_extreme_shape": 1}
    stored = list(read_reinforced_samples(report.shards))
    assert [sample.key for sample in stored] == ["a", "b"]
    assert all(len(sample.syn_captions["syn_text"]) == 5 for sample in stored)
