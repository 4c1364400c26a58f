"""One bad sample costs itself alone, whatever it makes the code raise; mutated shards are read without harm."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from mobileclip.data import (
    BadSampleError,
    ExampleMaker,
    ImageTextSample,
    ReinforcedPipelineSpec,
    Skip,
    SkipReport,
    write_shard,
)
from mobileclip.data.samples.members import parse_stored_sample
from mobileclip.data.shards.files import parse, read_shard
from mobileclip.data.skips import attempt, made_or_skip
from mobileclip.inputs import ImageInput
from mobileclip.machine import ResourceExhaustedError
from tests.data.made_samples import encoded, golden
from tests.errors import fails

ERRORS = (RecursionError, AssertionError, KeyError, OverflowError, StopIteration, UnicodeError)
SHARDS = {name: Path(golden(name)).read_bytes() for name in ("npz", "bf16", "noimage_bf16")}


@pytest.mark.parametrize("error", ERRORS)
def test_any_exception_is_a_skip_with_its_class(error):
    skips: list[Skip] = []

    def make():
        raise error

    assert attempt(make, key="a\nb", shard="https://user:secret@host/a.tar?sign=x", on_skip=skips.append) is None
    (skip,) = skips
    assert (skip.reason, skip.key, skip.shard) == (error.__name__, "a\\nb", "https://host/a.tar?...")
    assert made_or_skip(make, key="k", shard="s").reason == error.__name__


def test_a_reason_stays_and_what_is_told_is_bounded():
    skips: list[Skip] = []

    def make():
        raise BadSampleError("bad_key", "x\x1b[2J" * 10_000)

    attempt(make, key="k" * 50_000, shard="s", on_skip=skips.append)
    assert skips[0].reason == "bad_key"
    assert skips[0].detail.isprintable()
    assert len(skips[0].detail) < 10_000
    assert len(skips[0].key) < 5000


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_what_the_machine_lacks_is_no_samples_fault(error):
    skips: list[Skip] = []

    def make():
        raise BadSampleError("bad_text", "cannot be read") from error

    with pytest.raises(ResourceExhaustedError, match="ulimit" if isinstance(error, OSError) else "memory is full"):
        attempt(make, key="k", shard="s", on_skip=skips.append)
    assert not skips


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_who_stops_a_run_is_heard(error):
    def make():
        raise error

    with pytest.raises(error):
        attempt(make, key="k", shard="s", on_skip=[].append)


class TestPipeline:
    def spec(self, folder, **choices):
        samples = [
            ImageTextSample(key=f"{number}", captions=(f"caption {number}",), image=encoded(8, 6, seed=number))
            for number in range(9)
        ]
        write_shard(folder / "a.tar", samples)
        fields = {"shards": folder / "a.tar", "batch_size": 4, "image": ImageInput(size=16), "reinforced": False}
        return ReinforcedPipelineSpec(**{**fields, "num_samples": 9, "shuffle": False, "num_readers": 1, **choices})

    def test_what_one_sample_makes_the_augmentation_raise(self, tmp_path, monkeypatch):
        original = ExampleMaker.example

        def failing(self, sample, epoch):
            if sample.key == "3":
                raise RecursionError("too deep")
            return original(self, sample, epoch)

        monkeypatch.setattr(ExampleMaker, "example", failing)
        pipeline = self.spec(tmp_path).build()
        assert [key for batch in pipeline for key in batch.keys] == [*"01245678"]
        assert pipeline.report.counts == {"RecursionError": 1}

    def test_what_one_caption_makes_the_tokenizer_raise(self, tmp_path):
        spec = self.spec(tmp_path, drop_last=False)
        plain = spec.build()._tokenizer

        def failing(texts):
            if "caption 2" in texts or "caption 8" in texts:
                raise OverflowError
            return plain(texts)

        pipeline = spec.build(tokenizer=failing)
        assert [key for batch in pipeline for key in batch.keys] == [*"0143567"]  # sample 4 took the place of 2
        assert pipeline.report.counts == {"OverflowError": 2}
        assert pipeline.report.keys("OverflowError") == ("2", "8")

    def test_a_stream_of_bad_samples_ends(self, tmp_path, monkeypatch):
        def failing(self, sample, epoch):
            raise AssertionError

        monkeypatch.setattr(ExampleMaker, "example", failing)
        with fails(ValueError, "9 AssertionError"):
            next(self.spec(tmp_path).build().stream())


def read_mutated(data: bytes, folder: Path) -> None:
    (folder / "a.tar").write_bytes(data)
    report = SkipReport(log=False)
    num_samples = 0
    for raw in read_shard(str(folder / "a.tar"), report.add):
        sample = parse(raw, parse_stored_sample, report.add)
        if sample is not None:
            num_samples += 1
            attempt(sample.decoded, key=sample.key, shard="a", on_skip=report.add)
    assert set(report.counts) <= REASONS, report.counts
    assert num_samples or report.counts or not data.strip(b"\0")


REASONS = {
    *("truncated_shard", "unreadable_shard", "duplicate_member", "missing_member", "bad_json", "bad_text", "bad_key"),
    *("bad_embedding", "bad_augmentation", "row_count", "wrong_dim", "not_finite", "no_caption", "too_large"),
    *("bad_member", "bad_record"),
}


@pytest.mark.parametrize("name", SHARDS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_mutated_shards_are_read_without_an_exception(name, data, tmp_path_factory):
    _mutate(name, data, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDS)
@settings(max_examples=2000, deadline=None)
@given(data=st.data())
def test_many_mutated_shards(name, data, tmp_path_factory):
    _mutate(name, data, tmp_path_factory.getbasetemp())


def _mutate(name: str, data: st.DataObject, folder: Path) -> None:
    """Change bytes where they mean something: in headers, in JSON, in the directories and starts of members."""
    mutated = bytearray(SHARDS[name])
    for _ in range(data.draw(st.integers(1, 6))):
        block = data.draw(st.integers(0, len(mutated) // 512 - 1))
        place = block * 512 + data.draw(st.integers(0, 511))
        change = data.draw(st.binary(min_size=1, max_size=12))
        mutated[place : place + len(change)] = change
        header = mutated[block * 512 : block * 512 + 512]
        if header[257:262] == b"ustar" and data.draw(st.booleans()):
            header[148:156] = b" " * 8
            mutated[block * 512 + 148 : block * 512 + 156] = b"%06o\0 " % sum(header)
    if data.draw(st.booleans()):
        del mutated[data.draw(st.integers(0, len(mutated))) :]
    read_mutated(bytes(mutated), folder)
