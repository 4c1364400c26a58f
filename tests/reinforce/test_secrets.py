"""Passwords and signatures in a source's address reach no file, log or line."""

import logging

import pytest

from mobileclip.data import datacompdr_augmentation
from mobileclip.datasets import ShardSource
from mobileclip.reinforce import ReinforcementSpec, reinforce
from mobileclip.terminal import say
from tests.errors import fails
from tests.stores import web_server

SECRET = "signa-ture"


@pytest.mark.parametrize("cut", [0, 4000])
def test_signatures_reach_nothing_that_is_written_or_shown(make_shards, small_teachers, caplog, capfd, cut):
    shards = make_shards(num_shards=2, num_samples=2)
    output = shards[0].parent.parent / "out"
    with web_server() as web, caplog.at_level(logging.DEBUG):
        for shard in shards:
            content = shard.read_bytes()
            web.files[f"/{shard.name}?sign={SECRET}"] = content[: len(content) - cut]
        spec = ReinforcementSpec(
            source=ShardSource(shards=[f"{web.url}{path}" for path in web.files]),
            output=output,
            teachers=small_teachers,
            augmentation=datacompdr_augmentation(32),
            num_augmentations=2,
        )
        report = reinforce(spec)
        say(report)
        assert bool(report.skipped) == bool(cut)
    seen = caplog.text + "".join(capfd.readouterr())
    assert SECRET not in seen
    written = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert len(written) > 3
    assert [path.name for path, content in written.items() if SECRET.encode() in content or SECRET in str(path)] == []


def test_a_password_in_a_web_address_is_refused_and_not_repeated():
    with fails(ValueError) as caught:
        ShardSource(shards=["https://me:pass-word@host/a.tar"]).units()
    assert "pass-word" not in str(caught.value)
