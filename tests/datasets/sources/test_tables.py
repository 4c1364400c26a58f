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

from mobileclip.data import SkipReport, write_shard
from mobileclip.data.loading.uids import uid_of
from mobileclip.datasets import RowOptions, TableSource, as_source, open_data_set
from mobileclip.extras import install
from tests.build.canary import CANARY_EVENT, PickledCanary
from tests.data.made_samples import encoded
from tests.datasets.sources.reading import JPEG, copy_to_store, found, names, pictures, read, write_lines, write_table
from tests.errors import fails

UIDS = [hashlib.md5(bytes([number]), usedforsecurity=False).hexdigest() for number in range(9)]


@pytest.fixture(autouse=True)
def images(tmp_path):
    return pictures(tmp_path)


def table(path, **options):
    return TableSource(tables=path, options=RowOptions(**options))


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv"])
def test_every_form_gives_the_same(tmp_path, suffix):
    images = pictures(tmp_path / "in")
    captions = [f'ümläut "{number}", or so' for number in range(3)]
    rows = [
        {"path": f"{number}.png", "caption": captions[number], "uid": UIDS[number], "colour": "red"}
        for number in range(3)
    ]
    source = table(write_table(tmp_path / "in" / f"a.{suffix}", rows))
    assert found(source, "key", "image", "captions", "metadata") == (
        [
            (UIDS[n], images[n], (captions[n],), {"colour": "red", "uid": UIDS[n], "image": f"{n}.png"})
            for n in range(3)
        ],
        {},
    )


@pytest.mark.parametrize(
    ("row", "caption", "key"),
    [
        (
            {"uid": UIDS[0], "clip_l14_similarity_score": 0.3, "sha256": "0" * 64, "face_bboxes": [[0.1]]},
            "text",
            UIDS[0],
        ),
        ({"key": "000000007", "status": "success", "uid": UIDS[0], "error_message": None}, "caption", "000000007"),
        ({"WIDTH": 8}, "TEXT", "laion/000000001"),
    ],
    ids=["datacomp", "img2dataset", "laion"],
)
def test_the_public_lists_need_no_names(tmp_path, site, row, caption, key):
    site.files["/0.jpg"], url = JPEG, f"{site.url}/0.jpg"
    row |= {caption: "a cat", "URL" if caption == "TEXT" else "url": url}
    source = table(write_table(tmp_path / "laion.parquet", [row]), hosts=("127.0.0.1",))
    assert found(source, "key", "url", "captions", "image") == ([(key, url, ("a cat",), JPEG)], {})


def test_named_columns(tmp_path, images):
    row = {"path": "0.png", "caption": "usual", "picture": "1.png", "one": "a", "two": ["b", "a", " "], "n": 1.5}
    path = write_table(tmp_path / "a.parquet", [row])
    source = table(path, path_column="picture", caption_columns=("two", "one"))
    metadata = {"path": "0.png", "caption": "usual", "n": 1.5, "image": "1.png"}
    expected = ("a/000000001", ("b", "a"), images[1], metadata)
    assert found(source, "key", "captions", "image", "metadata") == ([expected], {})
    row = {"image": {"bytes": images[0], "path": None}, "caption": "x", "file": "1.png"}
    path = hub_table(tmp_path / "b.parquet", [row])
    for column, number in ((None, 0), ("file", 1), ("image", 0)):
        assert found(table(path, path_column=column), "image")[0] == [images[number]]
    path = write_table(tmp_path / "c.parquet", [{"path": "0.png", "caption": "x", "id": UIDS[4], "key": "mine"}])
    (sample,), _ = read(table(path, uid_column="id"))
    assert sample.key == "mine"
    members = {"json": json.dumps(sample.metadata).encode()}
    assert uid_of(sample.key, members) == (int(UIDS[4][:16], 16), int(UIDS[4][16:], 16))


def test_a_path_comes_before_an_address(tmp_path, images, site):
    site.files["/1.png"] = images[1]
    urls = ["https://host/0.png", f"{site.url}/1.png"]
    rows = [("0.png", urls[0]), ("", urls[1]), ("", "")]
    rows = [{"path": path, "url": url, "caption": "x"} for path, url in rows]
    source = table(write_table(tmp_path / "a.csv", rows), hosts=("127.0.0.1",))
    expected = [*zip(images, urls, strict=False)], {"missing_image": ["line 4"]}
    assert found(source, "image", "url") == expected


def test_a_file_without_names(tmp_path):
    (tmp_path / "a.tsv").write_text('a "cat\t0.png\na dog\t1.png\n', encoding="utf-8")
    source = as_source(tmp_path / "a.tsv", rows=RowOptions(header=("caption", "path")), samples_per_shard=1)
    assert found(source, "captions") == ([('a "cat',), ("a dog",)], {})
    with fails(ValueError, "a \"cat', '0.png", "--header"):
        as_source(tmp_path / "a.tsv").units()


def test_the_column_of_paths_is_the_first_that_is_there(tmp_path, images):
    """What a download was called is a path where there is no other; a path comes before an address."""
    others = ({"url": "0.png"}, {"image": "0.png"}, {"path": "0.png", "url": "https://host/9.png"})
    for number, other in zip((1, 0, 0, 0), ({}, *others), strict=True):
        path = write_table(tmp_path / "a.csv", [{"filename": "1.png", "title": "x", **other}])
        assert found(table(path), "image")[0] == [images[number]]
    assert read(table(path))[0][0].metadata["filename"] == "1.png"
    assert read(table(path, url_column="url"))[1].num_skipped == 1


def test_images_are_compared_where_a_hash_is_named(tmp_path, images):
    hashes = [hashlib.sha256(images[0]).hexdigest().upper(), "0" * 64, "", "none"]
    path = write_table(tmp_path / "a.csv", [{"path": "0.png", "caption": "x", "sha": value} for value in hashes])
    left_out = {"other_image": ["line 3"], "bad_hash": ["line 5"]}
    assert found(table(path, hash_column="sha"), "key") == (["a/000000001", "a/000000003"], left_out)
    assert len(read(table(path))[0]) == 4


def hub_table(path, rows, class_names=None):
    """Write a table as the hub does: images in a column, names of classes in what it says of columns."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    written = pa.table(columns | {"image": pa.array(columns["image"], image)})
    if class_names is not None:
        label = {"_type": "ClassLabel", "names": class_names}
        written = written.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {"label": label}}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(written, path, row_group_size=2)
    return path


def damage(path, column, first=0):
    """Overwrite where a column's values begin, in every row group from a first one on."""
    data, content = bytearray(path.read_bytes()), pq.ParquetFile(path).metadata
    for group in range(first, content.num_row_groups):
        for one in map(content.row_group(group).column, range(content.num_columns)):
            if one.path_in_schema == column:
                data[one.data_page_offset : one.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)


def test_pairs(tmp_path):
    first, second, third = pictures(tmp_path / "own")
    held = [(first, "no.png"), (second, "../own/0.png"), (b"none", None), (None, "2.png"), (None, None)]
    held = [*({"bytes": data, "path": path} for data, path in held), None]
    rows = [{"image": image, "file_name": "else.png", "text": str(number)} for number, image in enumerate(held)]
    path = hub_table(tmp_path / "own" / "a.parquet", rows)
    opened = open_data_set(path)
    assert (opened.kind, opened.name) == ("captions", "a")
    samples, report = read(opened.source)
    assert [(one.key, one.image, one.image_extension, one.metadata.get("image")) for one in samples] == [
        ("a/000000001", first, "png", "no.png"),
        ("a/000000002", second, "png", "../own/0.png"),
        ("a/000000004", third, "png", "2.png"),
    ]
    assert names(report) == {"image_not_an_image": ["row 3"], "missing_image": ["row 5", "row 6"]}
    (unit,) = opened.source.units()
    assert unit.files() == (str(path), str(path.with_name("2.png")))


def test_classes(tmp_path, images):
    labels = zip(images, (1, 0, 7), strict=True)
    rows = [{"image": {"bytes": image, "path": None}, "label": label} for image, label in labels]
    opened = open_data_set(hub_table(tmp_path / "a.parquet", rows, ["cat", "dog"]))
    assert (opened.kind, opened.class_names) == ("classes", ("cat", "dog"))
    expected = [((f"a photo of a {name}.",), {"label": name}) for name in ("dog", "cat")]
    assert found(opened.source, "captions", "metadata") == (expected, {"bad_label": ["row 3"]})
    with fails(ValueError, "no_caption"):
        open_data_set(hub_table(tmp_path / "b.parquet", rows))


def test_finding_out_what_there_is_reads_no_image(tmp_path):
    rows = [{"image": {"bytes": encoded(8, 6), "path": f"{number}.png"}, "text": "x"} for number in range(50)]
    path = hub_table(tmp_path / "a.parquet", rows)
    assert len(read(table(path))[0]) == 50
    damage(path, "image.bytes")
    opened = open_data_set(path)
    (unit,) = opened.source.units()
    assert unit.files() == (str(path),)
    assert len(list(unit.described(SkipReport(log=False)))) == 50
    assert read(opened.source)[1].counts == {"unreadable_file": 1}


@pytest.mark.parametrize(("suffix", "label"), [("parquet", "row"), ("csv", "line")])
def test_a_bad_cell_is_named_and_its_neighbours_are_read(tmp_path, suffix, label):
    bad = [{"path": None}, {"path": "no.png"}, {"path": "../0.png"}, {"caption": None}, {"key": "a.b"}]
    rows = [{"path": "0.png", "caption": "x", "key": f"{number}"} for number in range(7)]
    rows[1:6] = [row | cells for row, cells in zip(rows[1:6], bad, strict=True)]
    two, three, four, five, six = (f"{label} {number + (label == 'line')}" for number in range(2, 7))
    left_out = {"missing_image": [two, three], "refused_address": [four], "no_caption": [five], "bad_key": [six]}
    assert found(table(write_table(tmp_path / f"a.{suffix}", rows)), "key") == (["0", "6"], left_out)


@pytest.mark.parametrize("line", [b"0.png", b"0.png,x,y", b'0.png,"x', b"0.png,\xff"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_bad_line(tmp_path, line, size):
    reason = "bad_text" if b"\xff" in line else "bad_row"
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfpath,caption\r\n0.png,x\r\n\r\n" + line + b"\r\n1.png,y\r\n")
    source = TableSource(tables=tmp_path / "a.csv", samples_per_shard=size)
    expected = [("a/000000001", ("x",)), ("a/000000003", ("y",))], {reason: ["line 4"]}
    assert found(source, "key", "captions") == expected


@pytest.mark.parametrize("size", [1, 2, 9])
def test_a_huge_line(tmp_path, images, size):
    many = ",".join([f'"{"z" * 65_535}\nz"'] * 140)  # more than 8 MiB, of cells that are none of them too long
    lines = ["path,caption", "0.png,x", "0.png," + "y" * (2 * 2**23 + 500), f"0.png,{many}", "1.png,x"]
    (tmp_path / "a.csv").write_text("\n".join(lines), encoding="utf-8")
    samples, left_out = found(TableSource(tables=tmp_path / "a.csv", samples_per_shard=size), "image")
    assert samples[-1] == images[1]
    assert (left_out["line_too_long"], left_out["bad_row"][0]) == (["line 3"], "line 4")


def test_a_quotation_mark_that_is_never_closed(tmp_path):
    lines = ["path,caption", "0.png,x", '0.png,"', *["0.png,x"] * 5]
    (tmp_path / "a.csv").write_text("\n".join(lines), encoding="utf-8")
    keys = [f"a/{number:09d}" for number in (1, 3, 4, 5, 6, 7)]
    assert found(table(tmp_path / "a.csv"), "key") == (keys, {"bad_row": ["line 3"]})
    lines = ["path\tcaption", '0.png\t"never closed', '1.png\t"closed"', '"2.png\tx']
    (tmp_path / "a.tsv").write_text("\n".join(lines), encoding="utf-8")
    expected = [('"never closed',), ('"closed"',)], {"missing_image": ["line 4"]}
    assert found(table(tmp_path / "a.tsv"), "captions") == expected, "there they are characters"


def test_damage_of_parquet_costs_a_row_or_what_is_left_of_the_unit(tmp_path):
    texts = pa.array([b"x", b"\xff", b"y"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"path": ["0.png"] * 3, "caption": texts}), tmp_path / "a.parquet")
    assert found(table(tmp_path / "a.parquet"), "captions") == ([("x",), ("y",)], {"bad_text": ["row 2"]})
    rows = [{"path": "0.png", "caption": f"{number:0100d}"} for number in range(1000)]
    path = write_table(tmp_path / "b.parquet", rows, row_group_size=500, compression="gzip", use_dictionary=False)
    damage(path, "caption", first=1)
    samples, report = read(TableSource(tables=path, samples_per_shard=500))
    assert (len(samples), report.counts) == (500, {"unreadable_file": 1})


def test_nothing_of_python_is_run(tmp_path):
    """Arrow once unpickled what the metadata of a column said of its type."""
    events = []
    sys.addaudithook(lambda event, _: event == CANARY_EVENT and events.append(event))
    bad = pickle.dumps(PickledCanary())
    mark = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": bad}
    fields = [pa.field(name, pa.string()) for name in ("path", "caption")]
    schema = pa.schema([*fields, pa.field("bad", pa.string(), True, mark)])
    pq.write_table(pa.table([["0.png"], ["x"], ["y"]], schema), tmp_path / "a.parquet")
    assert (len(read(table(tmp_path / "a.parquet"))[0]), events) == (1, [])
    pickle.loads(bad)
    assert events == [CANARY_EVENT]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    texts=st.lists(st.sampled_from(["plain", 'a "quoted" one', "two\nlines", "a, comma", "\ttab"]), min_size=1),
    size=st.integers(1, 7),
    groups=st.integers(1, 5),
    blank=st.booleans(),
)
def test_units_are_the_rows_in_parts(tmp_path, texts, size, groups, blank):
    rows = [{"path": "0.png", "caption": text} for text in texts]
    paths = [write_table(tmp_path / "p.parquet", rows, row_group_size=groups)]
    paths.append(write_table(tmp_path / "c.csv", rows))
    if blank:
        paths[1].write_text(paths[1].read_text().replace("0.png,", "\n0.png,"))
    for path in paths:
        source = TableSource(tables=path, samples_per_shard=size)
        units = source.units()
        assert [unit.count() for unit in units[:-1]] == [size] * (len(units) - 1)
        assert sum(unit.count() for unit in units) == len(texts)
        assert [unit.name for unit in units] == [f"{path.stem}-{index:05d}.tar" for index in range(len(units))]
        assert len({unit.fingerprint() for unit in units}) == len(units)
        expected = [(f"{path.stem}/{number:09d}", (text,)) for number, text in enumerate(texts, 1)]
        assert found(source, "key", "captions") == (expected, {})


def test_a_folder_is_looked_through(tmp_path):
    pictures(tmp_path / "images")
    lists, stems = tmp_path / "lists", ("one/00000", "two/00000", "two/more")
    for name in ("one/00000.parquet", "two/00000.parquet", "two/more.csv", ".hidden/a.csv"):
        write_table(lists / name, [{"path": "0.png", "caption": name}] * 2)
    (lists / "notes.txt").write_text("x")
    assert isinstance(as_source(lists, samples_per_shard=1), TableSource)
    source = TableSource(tables=lists, image_root=tmp_path / "images", samples_per_shard=1)
    assert [unit.name for unit in source.units()] == [f"{stem}-0000{one}.tar" for stem in stems for one in (0, 1)]
    assert found(source, "key") == ([f"{stem}/{number:09d}" for stem in stems for number in (1, 2)], {})
    for named, units in (
        (f"{lists}/{{one,two}}/00000.parquet", stems[:2]),
        ([lists / "two/more.csv", lists / "one/00000.parquet"], (stems[2], stems[0])),
    ):
        assert [unit.name for unit in as_source(named).units()] == [f"{stem}-00000.tar" for stem in units]
    with fails(ValueError, ".parquet, .csv, .tsv"):
        TableSource(tables=tmp_path / "images").units()


MISTAKES = [
    ("a.csv", None, ("a.csv",)),
    *(("a.csv", content, ()) for content in (b"", b"path,caption\n", gzip.compress(b"path,caption\n", mtime=0))),
    ("a.csv", b"path,caption,path\nx,y,z\n", ("path",)),
    ("a.csv", b"path,words\nx,y\n", ("path",)),
    ("a.csv", b"path,url\nx,y\n", ("urls", "path', 'url")),
    ("a.parquet", b"PAR1" + bytes(100) + b"PAR1", ("a.parquet",)),
    ("a.jsonl", None, ()),
]


@pytest.mark.parametrize(("name", "content", "named"), MISTAKES)
def test_mistakes(tmp_path, name, content, named):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    options = RowOptions(url_column="urls" if content is None or "urls" in named else None)
    with fails(ValueError, *named):
        as_source(tmp_path / name, rows=options).units()


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_the_file_vanishes_before_it_is_read(tmp_path, suffix):
    row = {"path": "0.png", "image": "0.png", "caption": "x"}
    path = (write_lines if suffix == "jsonl" else write_table)(tmp_path / f"a.{suffix}", [row])
    (unit,) = as_source(path).units()
    path.unlink()
    report = SkipReport(log=False)
    assert (list(unit.read(report)), report.counts) == ([], {"unreadable_file": 1})
    with fails(ValueError, f"a.{suffix}"):
        unit.fingerprint()


def test_without_arrow_folders_and_shards_are_read(tmp_path, monkeypatch):
    write_lines(tmp_path / "captions.jsonl", [{"file_name": "0.png", "text": "x"}])
    path = write_table(tmp_path / "tables" / "a.csv", [{"path": "0.png", "caption": "x"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with fails(ModuleNotFoundError, "pyarrow", install("parquet")):
        table(path).units()
    samples, _ = read(as_source(f"folder:{tmp_path}"))
    write_shard(tmp_path / "a.tar", samples)
    assert found(as_source(tmp_path / "a.tar"), "captions")[0] == [("x",)]


def test_a_unit_takes_little_memory(tmp_path):
    rows = [{"url": f"https://host/{number}", "text": f"{number:01000d}"} for number in range(40_000)]
    path = write_table(tmp_path / "a.parquet", rows, row_group_size=40_000, use_dictionary=False)
    unit = table(path).units()[-1]
    before, most = pa.total_allocated_bytes(), 0
    for number, (key, label, row) in enumerate(unit.rows(), 39_001):
        assert (key, label, row["text"]) == (number, f"row {number}", f"{number - 1:01000d}")
        most = max(most, pa.total_allocated_bytes() - before)
    assert number == 40_000
    assert most < 8_000_000 < sum(len(row["text"]) for row in rows)


def test_tables_and_images_of_a_store(s3, tmp_path):
    s3.objects.clear()
    pictures(tmp_path / "images")
    write_table(tmp_path / "a.parquet", [{"path": f"images/{n}.png", "text": "abcd"[n]} for n in range(4)])
    write_table(tmp_path / "b.csv", [{"path": "images/0.png", "text": "e"}])
    copy_to_store(tmp_path, "s3://data/set")
    source = TableSource(tables=("s3://data/set/a.parquet", "s3://data/set/b.csv"), samples_per_shard=2)
    units = source.units()
    assert [unit.name for unit in units] == ["a-00000.tar", "a-00001.tar", "b-00000.tar"]
    assert len({unit.fingerprint() for unit in units}) == 3
    assert found(source, "captions") == ([("a",), ("b",), ("c",), ("e",)], {"missing_image": ["row 4"]})


def test_a_connection_that_breaks(tmp_path, site):
    rows = [{"url": "https://host/a", "text": f"{number:01000d}"} for number in range(5000)]
    site.files["/a.parquet"] = write_table(tmp_path / "a.parquet", rows, use_dictionary=False).read_bytes()
    (unit,) = TableSource(tables=f"{site.url}/a.parquet", samples_per_shard=9000).units()
    site.cut_after = [1000, 1000]
    assert sum(1 for _ in unit.rows()) == 5000
    site.status = {"/a.parquet": [503] * 99}
    report = SkipReport(log=False)
    assert (list(unit.described(report)), report.counts) == ([], {"connection_failed": 1})


def test_a_data_set_of_classes(tmp_path):
    rows = [{"path": f"{number}.png", "caption": "x", "label": "ab"[number % 2]} for number in range(3)]
    opened = open_data_set(write_table(tmp_path / "mine.csv", rows))
    assert (opened.name, opened.kind, opened.class_names) == ("mine", "classes", ("a", "b"))
