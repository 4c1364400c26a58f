"""What holds for every source: its JSON, and which path is of which kind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mobileclip.data import ImageTextSample, write_shard
from mobileclip.datasets import FolderSource, JsonLinesSource, ShardSource, TableSource, as_source
from tests.data.made_samples import golden
from tests.datasets.sources.reading import PNG
from tests.errors import fails


class TestAnySource:
    def test_the_kind_is_found_by_the_path(self, tmp_path):
        assert as_source("a/{0..3}.tar") == ShardSource(shards="a/{0..3}.tar")
        assert as_source(["a.tar", Path("b.tar")]) == ShardSource(shards=("a.tar", "b.tar"))
        assert as_source("pipe:cat a.tar") == ShardSource(shards="pipe:cat a.tar")
        assert as_source("s3://bucket/a.tar") == ShardSource(shards="s3://bucket/a.tar")
        assert as_source("a.JSONL", samples_per_shard=5) == JsonLinesSource(path="a.JSONL", samples_per_shard=5)
        assert as_source("a.CSV", samples_per_shard=5) == TableSource(tables="a.CSV", samples_per_shard=5)
        assert as_source(["a.csv", "b.tsv"]) == TableSource(tables=("a.csv", "b.tsv"))
        assert as_source(tmp_path, samples_per_shard=5) == FolderSource(path=tmp_path, samples_per_shard=5)
        assert as_source(FolderSource(path="x")) == FolderSource(path="x")
        shutil.copy(golden("npz"), tmp_path / "b.tar")
        shutil.copy(golden("npz"), tmp_path / "a.tar")
        assert as_source(tmp_path) == ShardSource(shards=(f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"))
        write_shard("memory://kinds/below/a.tar", [ImageTextSample(key="k", captions=("c",), image=PNG)])
        assert as_source("memory://kinds/below") == ShardSource(shards="memory://kinds/below/a.tar")
        assert as_source("memory://kinds") == FolderSource(path="memory://kinds")

    @pytest.mark.parametrize(
        ("data", "error"),
        [
            ("", ("data.data-data-set-folder",)),
            ("a.json", ("data.neither-tar-shard-nor", "a.json", ".jsonl, .ndjson, .parquet, .csv, .tsv")),
            ("a.csv.gz", ("data.neither-tar-shard-nor",)),
            ("a.jsonl.gz", ("data.neither-tar-shard-nor",)),
        ],
    )
    def test_what_is_no_source(self, data, error):
        with fails(*error):
            as_source(data)

    @pytest.mark.parametrize("cls", [JsonLinesSource, FolderSource])
    def test_a_shard_holds_something(self, cls):
        with pytest.raises(ValueError, match="samples_per_shard"):
            cls(path="a", samples_per_shard=0)
