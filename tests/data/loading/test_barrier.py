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


def raising(error, cause=None):
    def make(*_):
        raise error from cause

    return make


@pytest.mark.parametrize("error", ERRORS)
def test_any_exception_is_a_skip_with_its_class(error):
    skips: list[Skip] = []
    shard = "https://user:secret@host/a.tar?sign=x"
    assert attempt(raising(error), key="a\nb", shard=shard, on_skip=skips.append) is None
    (skip,) = skips
    assert (skip.reason, skip.key, skip.shard) == (error.__name__, "a\\nb", "https://host/a.tar?...")
    assert made_or_skip(raising(error), key="k", shard="s").reason == error.__name__


def test_a_reason_stays_and_what_is_told_is_bounded():
    bad = raising(BadSampleError("bad_key", "x\x1b[2J" * 10_000))
    skip = made_or_skip(bad, key="k" * 50_000, shard="s")
    assert skip.reason == "bad_key"
    assert skip.detail.isprintable()
    assert len(skip.detail) < 10_000
    assert len(skip.key) < 5000


@pytest.mark.parametrize(
    ("error", "cause", "expected", "word"),
    [
        (BadSampleError("bad_text", "no"), MemoryError(), ResourceExhaustedError, "memory is full"),
        (BadSampleError("bad_text", "no"), OSError(errno.EMFILE, "Too many files"), ResourceExhaustedError, "ulimit"),
        *((error, None, error, "") for error in (KeyboardInterrupt, SystemExit, GeneratorExit)),
    ],
)
def test_what_the_machine_lacks_and_who_stops_a_run_are_no_samples_fault(error, cause, expected, word):
    with fails(expected, word):
        attempt(raising(error, cause), key="k", shard="s", on_skip=pytest.fail)


class TestPipeline:
    @pytest.fixture
    @staticmethod
    def spec(tmp_path):
        many = [ImageTextSample(key=f"{n}", captions=(f"caption {n}",), image=encoded(8, 6, seed=n)) for n in range(9)]
        fields = {"shards": write_shard(tmp_path / "a.tar", many), "image": ImageInput(size=16), "reinforced": False}
        choices = {"shuffle": False, "num_readers": 1, "drop_last": False}
        return ReinforcedPipelineSpec(**fields, **choices, batch_size=4, num_samples=9)

    def test_what_one_sample_makes_the_augmentation_raise(self, spec, monkeypatch):
        original, failing = ExampleMaker.example, raising(RecursionError)

        def example(self, sample, epoch):
            return (failing if sample.key == "3" else original)(self, sample, epoch)

        monkeypatch.setattr(ExampleMaker, "example", example)
        pipeline = spec.build()
        assert [key for batch in pipeline for key in batch.keys] == [*"01245678"]
        assert pipeline.report.counts == {"RecursionError": 1}

    def test_what_one_caption_makes_the_tokenizer_raise(self, spec):
        plain = spec.build()._tokenizer

        def failing(texts):
            if "caption 2" in texts or "caption 8" in texts:
                raise OverflowError
            return plain(texts)

        pipeline = spec.build(tokenizer=failing)
        assert [key for batch in pipeline for key in batch.keys] == [*"0143567"]  # sample 4 took the place of 2
        assert pipeline.report.counts == {"OverflowError": 2}
        assert pipeline.report.keys("OverflowError") == ("2", "8")

    def test_a_stream_of_bad_samples_ends(self, spec, monkeypatch):
        monkeypatch.setattr(ExampleMaker, "example", raising(AssertionError))
        with fails(ValueError, "9 AssertionError"):
            next(spec.build().stream())


REASONS = {
    *("truncated_shard", "unreadable_shard", "duplicate_member", "missing_member", "bad_json", "bad_text", "bad_key"),
    *("bad_embedding", "bad_augmentation", "row_count", "wrong_dim", "not_finite", "no_caption", "too_large"),
    *("bad_member", "bad_record"),
}


@pytest.mark.parametrize("num_examples", [100, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SHARDS)
def test_mutated_shards_are_read_without_an_exception(name, num_examples, tmp_path):
    @settings(max_examples=num_examples, deadline=None)
    @given(data=st.data())
    def check(data):
        mutated = mutate(SHARDS[name], data)
        (tmp_path / "a.tar").write_bytes(mutated)
        report, num_samples = SkipReport(log=False), 0
        for raw in read_shard(str(tmp_path / "a.tar"), report.add):
            sample = parse(raw, parse_stored_sample, report.add)
            if sample is not None:
                num_samples += 1
                attempt(sample.decoded, key=sample.key, shard="a", on_skip=report.add)
        assert set(report.counts) <= REASONS, report.counts
        assert num_samples or report.counts or not mutated.strip(b"\0")

    check()


def mutate(shard: bytes, data: st.DataObject) -> bytes:
    """Change bytes where they mean something: in headers, in JSON, in the directories and starts of members."""
    mutated = bytearray(shard)
    for _ in range(data.draw(st.integers(1, 6))):
        start = 512 * data.draw(st.integers(0, len(mutated) // 512 - 1))
        place = start + data.draw(st.integers(0, 511))
        change = data.draw(st.binary(min_size=1, max_size=12))
        mutated[place : place + len(change)] = change
        header = mutated[start : start + 512]
        if header[257:262] == b"ustar" and data.draw(st.booleans()):
            header[148:156] = b" " * 8
            mutated[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    if data.draw(st.booleans()):
        del mutated[data.draw(st.integers(0, len(mutated))) :]
    return bytes(mutated)
