"""Tables of pairs as a source: Parquet, CSV and TSV; whole, damaged, remote and a stranger's."""

import gzip
import hashlib
import json
import pickle
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mobileclip import storage
from mobileclip.data import SkipReport, read_samples, write_shard
from mobileclip.data.loading.uids import uid_of
from mobileclip.datasets import RowOptions, TableSource, as_source, open_data_set
from mobileclip.extras import install
from tests.build.canary import CANARY_EVENT, PickledCanary
from tests.data.made_samples import encoded
from tests.datasets.sources.reading import PNG, names, read, write_lines, write_table
from tests.errors import fails

UIDS = [hashlib.md5(bytes([number]), usedforsecurity=False).hexdigest() for number in range(9)]
SUFFIXES = ("parquet", "csv", "tsv")


def pictures(folder, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(encoded(8, 6, seed=number))
    return [encoded(8, 6, seed=number) for number in range(count)]


class TestRows:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_every_form_gives_the_same(self, tmp_path, suffix):
        images = pictures(tmp_path / "in")
        rows = [
            {"path": f"{number}.png", "caption": f'ümläut "{number}", or so', "uid": UIDS[number], "colour": "red"}
            for number in range(3)
        ]
        samples, report = read(TableSource(tables=write_table(tmp_path / "in" / f"a.{suffix}", rows)))
        assert report.num_skipped == 0
        assert [sample.image for sample in samples] == images
        assert [sample.key for sample in samples] == UIDS[:3]
        assert [sample.captions for sample in samples] == [(row["caption"],) for row in rows]
        assert samples[1].metadata == {"colour": "red", "uid": UIDS[1], "image": "1.png"}
        write_shard(tmp_path / "a.tar", samples)
        assert len(list(read_samples(tmp_path / "a.tar"))) == 3

    def test_the_public_lists_need_no_names(self, tmp_path, site):
        site.files |= {f"/{number}.jpg": encoded(8, 6, seed=number, kind="jpeg") for number in range(2)}
        addresses = [f"{site.url}/{number}.jpg" for number in range(2)]
        rows = {"datacomp": [], "img2dataset": [], "laion": []}
        for number, (uid, url) in enumerate(zip(UIDS, addresses, strict=False)):
            row = {"uid": uid, "url": url, "text": "a cat", "clip_l14_similarity_score": 0.3, "sha256": "0" * 64}
            rows["datacomp"].append(row | {"face_bboxes": [[0.1, 0.2, 0.3, 0.4]]})
            row = {"url": url, "caption": "a cat", "key": f"00000000{number}", "status": "success", "uid": uid}
            rows["img2dataset"].append(row | {"error_message": None, "width": 8})
            rows["laion"].append({"URL": url, "TEXT": "a cat", "WIDTH": 8})
        keys = {"datacomp": UIDS[:2], "img2dataset": ["000000000", "000000001"]}
        keys["laion"] = ["laion/000000001", "laion/000000002"]
        for name, those in rows.items():
            path = write_table(tmp_path / f"{name}.parquet", those)
            samples, report = read(as_source(path, rows=RowOptions(hosts=("127.0.0.1",))))
            assert report.num_skipped == 0, name
            assert [sample.key for sample in samples] == keys[name]
            assert [sample.url for sample in samples] == addresses
            assert {sample.captions for sample in samples} == {("a cat",)}
            assert [sample.image for sample in samples] == list(site.files.values())

    def test_named_columns(self, tmp_path):
        images = pictures(tmp_path)
        row = {"path": "0.png", "caption": "usual", "picture": "1.png", "one": "a", "two": ["b", "a", " "], "n": 1.5}
        path = write_table(tmp_path / "a.parquet", [row])
        options = RowOptions(path_column="picture", caption_columns=("two", "one"))
        (sample,), _ = read(TableSource(tables=path, options=options))
        assert (sample.key, sample.captions, sample.image) == ("a/000000001", ("b", "a"), images[1])
        assert sample.metadata == {"path": "0.png", "caption": "usual", "n": 1.5, "image": "1.png"}
        row = {"image": {"bytes": images[0], "path": None}, "caption": "x", "file": "1.png"}
        path = hub_table(tmp_path / "b.parquet", [row])
        for column, image in ((None, 0), ("file", 1), ("image", 0)):
            (sample,), _ = read(TableSource(tables=path, options=RowOptions(path_column=column)))
            assert sample.image == images[image]
        path = write_table(tmp_path / "c.parquet", [{"path": "0.png", "caption": "x", "id": UIDS[4], "key": "mine"}])
        (sample,), _ = read(TableSource(tables=path, options=RowOptions(uid_column="id")))
        assert sample.key == "mine"
        members = {"json": json.dumps(sample.metadata).encode()}
        assert uid_of(sample.key, members) == (int(UIDS[4][:16], 16), int(UIDS[4][16:], 16))

    def test_a_path_comes_before_an_address(self, tmp_path, site):
        images = pictures(tmp_path)
        site.files["/1.png"] = images[1]
        rows = [("0.png", "https://host/0.png"), ("", f"{site.url}/1.png"), ("", "")]
        rows = [{"path": path, "url": url, "caption": "x"} for path, url in rows]
        path = write_table(tmp_path / "a.csv", rows)
        samples, report = read(TableSource(tables=path, options=RowOptions(hosts=("127.0.0.1",))))
        assert [sample.image for sample in samples] == images[:2]
        assert [sample.url for sample in samples] == ["https://host/0.png", f"{site.url}/1.png"]
        assert names(report) == {"missing_image": ["line 4"]}

    def test_a_file_without_names(self, tmp_path):
        pictures(tmp_path)
        (tmp_path / "a.tsv").write_text('a "cat\t0.png\na dog\t1.png\n', encoding="utf-8")
        source = as_source(tmp_path / "a.tsv", rows=RowOptions(header=("caption", "path")), samples_per_shard=1)
        samples, report = read(source)
        assert report.num_skipped == 0
        assert [sample.captions for sample in samples] == [('a "cat',), ("a dog",)]
        with fails(ValueError, "a \"cat', '0.png", "--header"):
            as_source(tmp_path / "a.tsv").units()

    def test_the_column_of_paths_is_the_first_that_is_there(self, tmp_path):
        """What a download was called is a path where there is no other; a path comes before an address."""
        pictures(tmp_path)
        row = {"filename": "1.png", "title": "x"}
        (sample,), _ = read(TableSource(tables=write_table(tmp_path / "a.csv", [row])))
        assert sample.image == encoded(8, 6, seed=1)
        for other in ({"url": "0.png"}, {"image": "0.png"}, {"path": "0.png", "url": "https://host/9.png"}):
            path = write_table(tmp_path / "a.csv", [{**row, **other}])
            (sample,), _ = read(TableSource(tables=path))
            assert sample.image == encoded(8, 6, seed=0)
            assert sample.metadata["filename"] == "1.png"
        assert read(TableSource(tables=path, options=RowOptions(url_column="url")))[1].num_skipped == 1

    def test_images_are_compared_where_a_hash_is_named(self, tmp_path):
        first, *_ = pictures(tmp_path)
        hashes = [hashlib.sha256(first).hexdigest().upper(), "0" * 64, "", "none"]
        rows = [{"path": "0.png", "caption": "x", "sha": value} for value in hashes]
        path = write_table(tmp_path / "a.csv", rows)
        samples, report = read(TableSource(tables=path, options=RowOptions(hash_column="sha")))
        assert [sample.key for sample in samples] == ["a/000000001", "a/000000003"]
        assert names(report) == {"other_image": ["line 3"], "bad_hash": ["line 5"]}
        assert len(read(TableSource(tables=path))[0]) == 4


def hub_table(path, rows, class_names=None):
    """Write a table as the hub does: images in a column, names of classes in what it says of columns."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    table = pa.table(columns | {"image": pa.array(columns["image"], image)})
    if class_names is not None:
        label = {"_type": "ClassLabel", "names": class_names}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {"label": label}}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)
    return path


class TestImagesInTheTable:
    def test_pairs(self, tmp_path):
        first, second, third = pictures(tmp_path / "own")
        held = [
            {"bytes": first, "path": "no.png"},
            {"bytes": second, "path": "../own/0.png"},
            {"bytes": b"none", "path": None},
            {"bytes": None, "path": "2.png"},
            {"bytes": None, "path": None},
            None,
        ]
        rows = [{"image": image, "file_name": "else.png", "text": str(number)} for number, image in enumerate(held)]
        opened = open_data_set(hub_table(tmp_path / "own" / "a.parquet", rows))
        assert (opened.kind, opened.name) == ("captions", "a")
        samples, report = read(opened.source)
        assert [(one.key, one.image, one.image_extension) for one in samples] == [
            ("a/000000001", first, "png"),
            ("a/000000002", second, "png"),
            ("a/000000004", third, "png"),
        ]
        assert [one.metadata.get("image") for one in samples] == ["no.png", "../own/0.png", "2.png"]
        assert names(report) == {"image_not_an_image": ["row 3"], "missing_image": ["row 5", "row 6"]}
        (unit,) = opened.source.units()
        assert unit.files() == (str(tmp_path / "own" / "a.parquet"), str(tmp_path / "own" / "2.png"))

    def test_classes(self, tmp_path):
        images = pictures(tmp_path)
        rows = [
            {"image": {"bytes": image, "path": None}, "label": label}
            for image, label in zip(images, (1, 0, 7), strict=True)
        ]
        opened = open_data_set(hub_table(tmp_path / "a.parquet", rows, ["cat", "dog"]))
        assert (opened.kind, opened.class_names) == ("classes", ("cat", "dog"))
        samples, report = read(opened.source)
        assert [one.captions for one in samples] == [("a photo of a dog.",), ("a photo of a cat.",)]
        assert [one.metadata for one in samples] == [{"label": "dog"}, {"label": "cat"}]
        assert names(report) == {"bad_label": ["row 3"]}
        with fails(ValueError, "no_caption"):
            open_data_set(hub_table(tmp_path / "b.parquet", rows))

    def test_finding_out_what_there_is_reads_no_image(self, tmp_path):
        rows = [{"image": {"bytes": encoded(8, 6), "path": f"{number}.png"}, "text": "x"} for number in range(50)]
        path = hub_table(tmp_path / "a.parquet", rows)
        assert len(read(TableSource(tables=path))[0]) == 50
        damaged, content = bytearray(path.read_bytes()), pq.ParquetFile(path).metadata
        for group in range(content.num_row_groups):
            columns = map(content.row_group(group).column, range(content.num_columns))
            (start,) = (one.data_page_offset for one in columns if one.path_in_schema == "image.bytes")
            damaged[start : start + 40] = b"\xff" * 40
        path.write_bytes(damaged)
        opened = open_data_set(path)
        (unit,) = opened.source.units()
        assert unit.files() == (str(path),)
        assert len(list(unit.described(SkipReport(log=False)))) == 50
        assert read(opened.source)[1].counts == {"unreadable_file": 1}


class TestBadRows:
    CELLS = (
        ({"path": None}, "missing_image"),
        ({"path": "no.png"}, "missing_image"),
        ({"path": "../0.png"}, "refused_address"),
        ({"caption": None}, "no_caption"),
        ({"key": "a.b"}, "bad_key"),
    )

    @pytest.mark.parametrize(("cells", "reason"), CELLS, ids=[str(number) for number in range(len(CELLS))])
    def test_a_bad_cell_is_named_and_its_neighbours_are_read(self, tmp_path, cells, reason):
        pictures(tmp_path)
        good = [{"path": "0.png", "caption": "x", "key": key} for key in ("first", "bad", "last")]
        good[1] |= cells
        for suffix, label in (("parquet", "row 2"), ("csv", "line 3")):
            samples, report = read(TableSource(tables=write_table(tmp_path / f"a.{suffix}", good)))
            assert [sample.key for sample in samples] == ["first", "last"]
            assert names(report) == {reason: [label]}

    LINES = (
        (b"0.png", "bad_row"),
        (b"0.png,x,y", "bad_row"),
        (b'0.png,"x', "bad_row"),
        (b"0.png,\xff", "bad_text"),
    )

    @pytest.mark.parametrize(("line", "reason"), LINES, ids=[str(number) for number in range(len(LINES))])
    @pytest.mark.parametrize("size", [1, 3])
    def test_a_bad_line(self, tmp_path, line, reason, size):
        pictures(tmp_path)
        (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfpath,caption\r\n0.png,x\r\n\r\n" + line + b"\r\n1.png,y\r\n")
        samples, report = read(TableSource(tables=tmp_path / "a.csv", samples_per_shard=size))
        assert [sample.captions for sample in samples] == [("x",), ("y",)]
        assert [sample.key for sample in samples] == ["a/000000001", "a/000000003"]
        assert names(report) == {reason: ["line 4"]}

    def test_a_huge_line(self, tmp_path):
        pictures(tmp_path)
        many = ",".join([f'"{"z" * 65_535}\nz"'] * 140)  # more than 8 MiB, of cells that are none of them too long
        lines = ["path,caption", "0.png,x", "0.png," + "y" * (2 * 2**23 + 500), f"0.png,{many}", "1.png,x"]
        (tmp_path / "a.csv").write_text("\n".join(lines), encoding="utf-8")
        for size in (1, 2, 9):
            samples, report = read(TableSource(tables=tmp_path / "a.csv", samples_per_shard=size))
            assert samples[-1].image == encoded(8, 6, seed=1)
            assert names(report)["line_too_long"] == ["line 3"]
            assert names(report)["bad_row"][0] == "line 4"

    def test_a_quotation_mark_that_is_never_closed(self, tmp_path):
        pictures(tmp_path)
        lines = ["path,caption", "0.png,x", '0.png,"', *["0.png,x"] * 5]
        (tmp_path / "a.csv").write_text("\n".join(lines), encoding="utf-8")
        samples, report = read(TableSource(tables=tmp_path / "a.csv"))
        assert [sample.key for sample in samples] == [f"a/{number:09d}" for number in (1, 3, 4, 5, 6, 7)]
        assert names(report) == {"bad_row": ["line 3"]}
        lines = ["path\tcaption", '0.png\t"never closed', '1.png\t"closed"', '"2.png\tx']
        (tmp_path / "a.tsv").write_text("\n".join(lines), encoding="utf-8")
        samples, report = read(TableSource(tables=tmp_path / "a.tsv"))  # there they are characters
        assert [sample.captions for sample in samples] == [('"never closed',), ('"closed"',)]
        assert names(report) == {"missing_image": ["line 4"]}

    def test_damage_of_parquet_costs_a_row_or_what_is_left_of_the_unit(self, tmp_path):
        pictures(tmp_path)
        texts = pa.array([b"x", b"\xff", b"y"], pa.binary()).view(pa.string())
        pq.write_table(pa.table({"path": ["0.png"] * 3, "caption": texts}), tmp_path / "a.parquet")
        samples, report = read(TableSource(tables=tmp_path / "a.parquet"))
        assert [sample.captions for sample in samples] == [("x",), ("y",)]
        assert names(report) == {"bad_text": ["row 2"]}
        rows = [{"path": "0.png", "caption": f"{number:0100d}"} for number in range(1000)]
        path = write_table(tmp_path / "b.parquet", rows, row_group_size=500, compression="gzip", use_dictionary=False)
        data = bytearray(path.read_bytes())
        start = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
        data[start : start + 40] = b"\xff" * 40
        path.write_bytes(data)
        samples, report = read(TableSource(tables=path, samples_per_shard=500))
        assert (len(samples), report.counts) == (500, {"unreadable_file": 1})

    def test_nothing_of_python_is_run(self, tmp_path):
        """Arrow once unpickled what the metadata of a column said of its type."""
        pictures(tmp_path)
        events = []
        sys.addaudithook(lambda event, _: event == CANARY_EVENT and events.append(event))
        bad = pickle.dumps(PickledCanary())
        mark = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": bad}
        columns = {name: pa.field(name, pa.string()) for name in ("path", "caption")}
        fields = [*columns.values(), pa.field("bad", pa.string(), True, mark)]
        pq.write_table(pa.table([["0.png"], ["x"], ["y"]], pa.schema(fields)), tmp_path / "a.parquet")
        samples, _ = read(TableSource(tables=tmp_path / "a.parquet"))
        assert (len(samples), events) == (1, [])
        pickle.loads(bad)
        assert events == [CANARY_EVENT]


class TestUnits:
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(
        texts=st.lists(st.sampled_from(["plain", 'a "quoted" one', "two\nlines", "a, comma", "\ttab"]), min_size=1),
        size=st.integers(1, 7),
        groups=st.integers(1, 5),
        blank=st.booleans(),
    )
    def test_units_are_the_rows_in_parts(self, tmp_path, texts, size, groups, blank):
        (tmp_path / "a.png").write_bytes(PNG)
        rows = [{"path": "a.png", "caption": text} for text in texts]
        write_table(tmp_path / "p.parquet", rows, row_group_size=groups)
        write_table(tmp_path / "c.csv", rows)
        if blank:
            (tmp_path / "c.csv").write_text((tmp_path / "c.csv").read_text().replace("a.png,", "\na.png,"))
        for path in (tmp_path / "p.parquet", tmp_path / "c.csv"):
            source = TableSource(tables=path, samples_per_shard=size)
            units = source.units()
            assert [unit.count() for unit in units[:-1]] == [size] * (len(units) - 1)
            assert sum(unit.count() for unit in units) == len(texts)
            assert [unit.name for unit in units] == [f"{path.stem}-{index:05d}.tar" for index in range(len(units))]
            assert len({unit.fingerprint() for unit in units}) == len(units)
            samples, report = read(source)
            assert report.num_skipped == 0
            assert [sample.captions for sample in samples] == [(text,) for text in texts]
            assert [sample.key for sample in samples] == [
                f"{path.stem}/{number:09d}" for number in range(1, len(texts) + 1)
            ]

    def test_a_folder_is_looked_through(self, tmp_path):
        pictures(tmp_path / "images")
        lists = tmp_path / "lists"
        for name in ("one/00000.parquet", "two/00000.parquet", "two/more.csv", ".hidden/a.csv"):
            write_table(lists / name, [{"path": "0.png", "caption": name}] * 2)
        (lists / "notes.txt").write_text("x")
        assert isinstance(as_source(lists, samples_per_shard=1), TableSource)
        source = TableSource(tables=lists, image_root=tmp_path / "images", samples_per_shard=1)
        stems = ("one/00000", "two/00000", "two/more")
        assert [unit.name for unit in source.units()] == [
            f"{stem}-{index:05d}.tar" for stem in stems for index in range(2)
        ]
        samples, report = read(source)
        assert report.num_skipped == 0
        assert [sample.key for sample in samples] == [f"{stem}/{number:09d}" for stem in stems for number in (1, 2)]
        for named, units in (
            (f"{lists}/{{one,two}}/00000.parquet", ["one/00000-00000.tar", "two/00000-00000.tar"]),
            ([lists / "two/more.csv", lists / "one/00000.parquet"], ["two/more-00000.tar", "one/00000-00000.tar"]),
        ):
            assert [unit.name for unit in as_source(named).units()] == units

    @pytest.mark.parametrize(
        ("content", "named"),
        [
            (None, ("a.csv",)),
            (b"", ()),
            (b"path,caption\n", ()),
            (gzip.compress(b"path,caption\n", mtime=0), ()),
            (b"path,caption,path\nx,y,z\n", ("path",)),
            (b"path,words\nx,y\n", ("path",)),
            (b"path,url\nx,y\n", ("urls", "path', 'url")),
        ],
    )
    def test_mistakes(self, tmp_path, content, named):
        if content is not None:
            (tmp_path / "a.csv").write_bytes(content)
        options = RowOptions(url_column="urls") if "urls" in named else RowOptions()
        with fails(ValueError, *named):
            TableSource(tables=tmp_path / "a.csv", options=options).units()
        (tmp_path / "a.csv").unlink(missing_ok=True)
        with fails(ValueError, ".parquet, .csv, .tsv"):
            TableSource(tables=tmp_path).units()
        (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
        with fails(ValueError, "a.parquet"):
            TableSource(tables=tmp_path / "a.parquet").units()
        with fails(ValueError):
            as_source(tmp_path / "a.jsonl", rows=RowOptions(url_column="URL"))

    @pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
    def test_the_file_vanishes_before_it_is_read(self, tmp_path, suffix):
        row = {"path": "0.png", "image": "0.png", "caption": "x"}
        path = (write_lines if suffix == "jsonl" else write_table)(tmp_path / f"a.{suffix}", [row])
        (unit,) = as_source(path).units()
        path.unlink()
        report = SkipReport(log=False)
        assert (list(unit.read(report)), report.counts) == ([], {"unreadable_file": 1})
        with fails(ValueError, f"a.{suffix}"):
            unit.fingerprint()

    def test_without_arrow_folders_and_shards_are_read(self, tmp_path, monkeypatch):
        pictures(tmp_path)
        write_lines(tmp_path / "captions.jsonl", [{"file_name": "0.png", "text": "x"}])
        table = write_table(tmp_path / "tables" / "a.csv", [{"path": "0.png", "caption": "x"}])
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with fails(ModuleNotFoundError, "pyarrow", install("parquet")):
            TableSource(tables=table).units()
        samples, _ = read(as_source(f"folder:{tmp_path}"))
        assert [sample.captions for sample in samples] == [("x",)]
        write_shard(tmp_path / "a.tar", samples)
        assert len(read(as_source(tmp_path / "a.tar"))[0]) == 1

    def test_a_unit_takes_little_memory(self, tmp_path):
        rows = [{"url": f"https://host/{number}", "text": f"{number:01000d}"} for number in range(40_000)]
        path = write_table(tmp_path / "a.parquet", rows, row_group_size=40_000, use_dictionary=False)
        unit = TableSource(tables=path).units()[-1]
        before, most = pa.total_allocated_bytes(), 0
        for number, (key, label, row) in enumerate(unit.rows(), 39_001):
            assert (key, label, row["text"]) == (number, f"row {number}", f"{number - 1:01000d}")
            most = max(most, pa.total_allocated_bytes() - before)
        assert number == 40_000
        assert most < 8_000_000 < sum(len(row["text"]) for row in rows)


class TestElsewhere:
    def test_tables_and_images_of_a_store(self, s3):
        s3.objects.clear()
        for number in range(3):
            with storage.atomic_write(f"s3://data/set/images/{number}.png") as stream:
                stream.write(encoded(8, 6, seed=number))
        table = pa.table({"path": [f"images/{number}.png" for number in range(4)], "text": list("abcd")})
        with storage.atomic_write("s3://data/set/a.parquet") as stream:
            pq.write_table(table, stream)
        with storage.atomic_write("s3://data/set/b.csv") as stream:
            stream.write(b"path,text\nimages/0.png,e\n")
        source = TableSource(tables=("s3://data/set/a.parquet", "s3://data/set/b.csv"), samples_per_shard=2)
        units = source.units()
        assert [unit.name for unit in units] == ["a-00000.tar", "a-00001.tar", "b-00000.tar"]
        assert len({unit.fingerprint() for unit in units}) == 3
        samples, report = read(source)
        assert [sample.captions for sample in samples] == [("a",), ("b",), ("c",), ("e",)]
        assert names(report) == {"missing_image": ["row 4"]}

    def test_a_connection_that_breaks(self, tmp_path, site):
        rows = [{"url": "https://host/a", "text": f"{number:01000d}"} for number in range(5000)]
        table = write_table(tmp_path / "a.parquet", rows, use_dictionary=False).read_bytes()
        site.files["/a.parquet"] = table
        (unit,) = TableSource(tables=f"{site.url}/a.parquet", samples_per_shard=9000).units()
        site.cut_after = [1000, 1000]
        assert sum(1 for _ in unit.rows()) == 5000
        site.status = {"/a.parquet": [503] * 99}
        report = SkipReport(log=False)
        assert list(unit.described(report)) == []
        assert report.counts == {"connection_failed": 1}

    def test_a_data_set_of_classes(self, tmp_path):
        rows = [{"path": f"{number}.png", "caption": "x", "label": "ab"[number % 2]} for number in range(3)]
        opened = open_data_set(write_table(tmp_path / "mine.csv", rows))
        assert (opened.name, opened.kind, opened.class_names) == ("mine", "classes", ("a", "b"))
