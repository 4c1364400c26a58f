"""What the server of an index answers, and whom it refuses."""

import io
import json
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import anyio
import attrs
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from mobileclip.collections import Collection, ModelSource
from mobileclip.collections.web.application import build_application
from mobileclip.collections.web.guard import MOST_PICTURE_BYTES, Uploads
from mobileclip.collections.web.served import Thumbnails, picture_of
from mobileclip.encoders.checkpoints import PACKAGED
from tests.collections.pictures import draw, pack
from tests.collections.web.served import OPTIONS, make_index, running
from tests.datasets.made_videos import film, scene
from tests.waiting import wait_for

ADDRESS = "http://127.0.0.1:8000"
BYTES = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def collection(tmp_path_factory, telling_file):
    return make_index(tmp_path_factory.mktemp("served"), telling_file)


@pytest.fixture(scope="module")
def client(collection):
    return TestClient(build_application(collection), base_url=ADDRESS)


@pytest.fixture
def changing(collection, tmp_path):
    """The same index in a folder of its own, with a client that asks for it, and may meet errors."""
    shutil.copytree(collection.path, tmp_path / "index")
    copied = Collection.open(tmp_path / "index")
    return copied.path, TestClient(build_application(copied), base_url=ADDRESS, raise_server_exceptions=False)


def photos(collection):
    return collection.path.parent / "photos"


def found(client, query="", **given):
    answer = client.request("POST" if given else "GET", f"/api/search?{query}", **given)
    assert answer.status_code == 200, answer.text
    return answer.json()["matches"]


def names(matches):
    return [match["path"].rsplit("/", 1)[1] for match in matches]


def test_the_page_is_there_and_runs_nothing_but_its_own_files(client):
    kinds = {
        "/": "html",
        "/search.css": "css",
        "/search.js": "javascript",
        "/page.js": "javascript",
        "/address.js": "javascript",
        "/filters.js": "javascript",
        "/explain.js": "javascript",
        "/own.js": "javascript",
        "/icon.svg": "svg",
    }
    for path, kind in kinds.items():
        answer = client.get(path)
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers
    assert all("innerHTML" not in client.get(path).text for path, kind in kinds.items() if kind == "javascript")
    assert client.get("/").text.count('id="results"') == 1


def test_a_search_finds_what_the_collection_finds(client, collection):
    matches = found(client, "text=a+cat&k=4")
    expected = collection.search("a cat", k=4)
    assert [match["id"] for match in matches] == [match.id for match in expected]
    assert [match["score"] for match in matches] == [match.score for match in expected]
    assert matches[0]["width"] == 96
    turned = found(client, "text=a+cat&not=a+dog")
    assert [one["score"] for one in turned] == [one.score for one in collection.search("a cat", without="a dog", k=60)]
    assert names(found(client, "text=a&where=path~4.png&where=width%3E1")) == ["4.png"]


def test_further_matches_come_behind_the_first(client):
    matches = found(client, "text=a+cat")
    assert [*found(client, "text=a+cat&k=3"), *found(client, "text=a+cat&skip=3&k=60")] == matches
    assert found(client, "text=a+cat&skip=8") == []


@pytest.mark.parametrize(("name", "value"), [("not", "a+dog"), ("where", "width>1")])
def test_the_number_of_texts_that_are_encoded_and_of_conditions_has_a_limit(client, name, value):
    def status(count):
        return client.get("/api/search?text=a+cat" + f"&{name}={value}" * count).status_code

    assert (status(16), status(17)) == (200, 400)


@pytest.mark.parametrize("query", ["text=a+cat", "text=a+cat&not=a+dog", "like={like}"])
def test_a_map_of_a_match_sums_to_its_score(client, query):
    query = query.format(like=found(client, "text=a")[3]["id"])
    for match in found(client, f"{query}&k=2"):
        answer = client.get(f"/api/explain/{match['id']}?{query}").json()
        assert np.shape(answer["map"]) == (4, 4)
        assert np.sum(answer["map"]) == pytest.approx(answer["score"], abs=1e-5)
        # The index keeps embeddings in float16.
        assert answer["score"] == pytest.approx(match["score"], abs=2e-3)


def test_a_map_of_a_picture_of_ones_own_and_of_none(client, collection):
    data = (photos(collection) / "4.png").read_bytes()
    (best,) = found(client, "k=1", content=data, headers=BYTES)
    answer = client.post(f"/api/explain/{best['id']}", content=data, headers=BYTES).json()
    assert answer["score"] == pytest.approx(1, abs=2e-3)
    assert client.get("/api/explain/999999?text=a").status_code == 404
    assert "the query is empty" in client.get(f"/api/explain/{best['id']}").json()["error"]


def test_the_start_page_says_what_the_collection_is(client, collection):
    about = client.get("/api/collection").json()
    assert about["model"] == str(collection.store.about.model)
    assert (about["num_pictures"], about["dim"], about["explains"]) == (8, 24, True)
    assert about["limits"] == ""
    examples = client.get("/api/examples").json()["examples"]
    assert 0 < len({one["id"] for one in examples}) == len(examples) <= 6
    columns = {one.pop("name"): one for one in client.get("/api/columns").json()["columns"]}
    assert columns["width"] == {"kind": "number", "least": 96, "most": 96}
    assert columns["path"]["kind"] == "text"
    assert not columns.keys() & {"camera", "taken", "latitude", "time", "part", "sha256"}


def test_a_picture_is_searched_with_its_bytes_and_with_a_text(client, collection):
    path = photos(collection) / "4.png"
    assert names(found(client, "k=1", content=path.read_bytes(), headers=BYTES)) == ["4.png"]
    both = found(client, "text=a+cat", content=path.read_bytes(), headers=BYTES)
    assert [one["score"] for one in both] == [one.score for one in collection.search("a cat", image=path, k=60)]


def test_pictures_like_one_of_the_index_are_found_without_its_file(client, collection):
    (known,) = found(client, "text=a&where=path~photos/2.png")
    matches = found(client, f"like={known['id']}&k=2")
    assert sorted(names(matches)) == ["2.png", "copy of 2.png"]
    assert matches[0]["score"] > 0.99


def test_duplicates_are_shown_with_the_best_copy_first(client):
    answer = client.get("/api/duplicates?threshold=0.998").json()
    assert answer["num_groups"] == 1
    assert sorted(names(answer["groups"][0])) == ["2.png", "copy of 2.png"]


def test_pictures_are_made_small_and_without_notes(client, collection):
    (known,) = found(client, "text=a&where=path~photos/3.png")
    for size in ("small", "large"):
        answer = client.get(f"/pictures/{known['id']}/{size}")
        image = Image.open(io.BytesIO(answer.content))
        assert (answer.headers["content-type"], image.format, image.size) == ("image/webp", "WEBP", (96, 80))
        assert "exif" not in image.info
    for path in (f"/pictures/{known['id']}/huge", "/pictures/999999/small", "/pictures/..%2f..%2fetc%2fpasswd/small"):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("", 400, "the query is empty"),
        ("text=a&k=0", 400, "k is 0"),
        ("text=a&k=x", 400, "k is 'x', expected a number"),
        ("text=a&skip=-1", 400, "skip is -1, expected 0 to"),
        ("text=a&frames=some", 400, "frames is 'some', expected best or all"),
        ("text=a&where=colour%3Dred", 400, "there is no column 'colour'"),
        ("like=999999", 400, "no image with the id 999999"),
        (f"like={2**80}", 400, "no image with the id"),
        ("like=-1", 400, "no image with the id"),
    ],
)
def test_what_is_wrong_is_said(client, query, status, said):
    answer = client.get(f"/api/search?{query}")
    assert answer.status_code == status
    assert said in answer.json()["error"]


def test_threshold_that_is_none_is_refused(client):
    for given in ("0", "2", "nan", "x"):
        assert client.get(f"/api/duplicates?threshold={given}").status_code == 400


def test_pictures_that_are_none_are_refused(client):
    for content, headers, status in (
        (b"no picture \x1b[31m", BYTES, 400),
        (b"", BYTES, 400),
        (b"x" * (MOST_PICTURE_BYTES + 1), BYTES, 413),
        (b"x", {"Content-Type": "text/plain"}, 415),
    ):
        answer = client.post("/api/search", content=content, headers=headers)
        assert answer.status_code == status
        assert "\x1b" not in answer.json()["error"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:8000"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_other_sites_are_refused(client, headers):
    answer = client.get("/api/collection", headers=headers)
    assert answer.status_code == 403
    assert "index" not in answer.json()
    assert client.options("/api/search", headers=headers).status_code == 403


def test_the_page_itself_is_not_refused(client):
    own = {"Origin": ADDRESS, "Sec-Fetch-Site": "same-origin"}
    assert client.get("/api/collection", headers=own).json()["num_pictures"] == 8
    assert client.get("/api/collection", headers={"Host": "localhost:8000"}).status_code == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200


@pytest.mark.parametrize("model", ["icons", "icons-multilingual"])
def test_what_a_packaged_model_cannot_do_comes_from_its_card(tmp_path, model):
    own = Collection.create(tmp_path / "index", ModelSource(model=model))
    own.add(draw(tmp_path / "0.png", 0), options=OPTIONS)
    said = TestClient(build_application(own), base_url=ADDRESS).get("/api/collection").json()["limits"]
    assert said.startswith("Not for ")
    card = PACKAGED[model].with_name(f"{model}.md").read_text(encoding="utf-8")
    assert said.removeprefix("Not for ") in " ".join(card.split())


def test_names_are_shown_without_what_moves_a_cursor_or_turns_a_line(client):
    (harmful,) = found(client, "text=a&where=path~script")
    assert harmful["name"].isprintable()
    assert "\\x1b[31m" in harmful["name"]
    assert client.get(f"/pictures/{harmful['id']}/small").status_code == 200


def test_a_file_that_is_gone_or_another_one_is_not_shown(collection, tmp_path, telling_file):
    folder = tmp_path / "photos"
    paths = [draw(folder / f"{number}.png", number) for number in range(3)]
    own = Collection.create(tmp_path / "index", ModelSource(checkpoint=str(telling_file)))
    own.add(folder, options=OPTIONS)
    client = TestClient(build_application(own), base_url=ADDRESS)
    numbers = {Path(one["path"]).name: one["id"] for one in found(client, "text=a")}

    def status(path):
        return client.get(f"/pictures/{numbers[path.name]}/small").status_code

    assert [status(path) for path in paths] == [200] * 3
    paths[0].unlink()
    paths[1].unlink()
    paths[1].symlink_to(photos(collection) / "5.png")
    os.utime(paths[2], (1, 1))
    assert [status(path) for path in paths] == [410, 410, 200]


def test_pictures_of_shards_are_shown_until_the_shard_is_another_one(tmp_path, telling_file):
    pack(tmp_path / "00.tar", 0, 1, 2)
    own = Collection.create(tmp_path / "index", ModelSource(checkpoint=str(telling_file)))
    own.add(tmp_path / "00.tar", options=OPTIONS)
    client = TestClient(build_application(own), base_url=ADDRESS)
    matches = found(client, "text=a")
    assert sorted(one["file"] for one in matches) == ["0000", "0001", "0002"]
    addresses = [f"/pictures/{one['id']}/small" for one in sorted(matches, key=lambda one: one["part"])]
    assert len({client.get(address).content for address in addresses}) == 3
    (tmp_path / "00.tar").unlink()
    pack(tmp_path / "00.tar", 0, 3)
    assert [client.get(address).status_code for address in addresses] == [200, 410, 410]


def test_frames_are_shown_and_their_video_is_sent(tmp_path, telling_file):
    path = film(tmp_path / "videos/clip.webm", [1, 2, 3], codec="libvpx")
    draw(tmp_path / "videos/0.png", 0)
    index = Collection.create(tmp_path / "index", ModelSource(checkpoint=str(telling_file)))
    index.add(tmp_path / "videos", options=attrs.evolve(OPTIONS, video_seconds=2))
    client = TestClient(build_application(index), base_url=ADDRESS)
    (best,) = found(client, "text=a&where=time>=0")
    frames = found(client, "text=a&where=time>=0&frames=all")
    assert best == frames[0]
    assert sorted(one["time"] for one in frames) == [0, 2, 4]
    one = next(one for one in frames if one["time"] == 4)
    assert one["file"] == "clip.webm 0:04"
    small = Image.open(io.BytesIO(client.get(f"/pictures/{one['id']}/small").content))
    assert np.abs(np.asarray(small).astype(int) - np.asarray(scene(3))).mean() < 12
    sent = client.get(f"/originals/{one['id']}")
    assert (sent.status_code, sent.headers["content-type"], sent.content) == (200, "video/webm", path.read_bytes())
    part = client.get(f"/originals/{one['id']}", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, path.read_bytes()[10:20])
    assert client.get(f"/originals/{one['id']}", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    (picture,) = (match for match in found(client, "text=a") if "time" not in match)
    sent = client.get(f"/originals/{picture['id']}")
    assert (sent.headers["content-type"], sent.content) == ("image/png", (tmp_path / "videos/0.png").read_bytes())
    film(path, [5], codec="libvpx")
    draw(tmp_path / "videos/0.png", 1)
    for address in (f"/originals/{one['id']}", f"/pictures/{one['id']}/small", f"/originals/{picture['id']}"):
        assert client.get(address).status_code == 410


def test_an_index_that_changes_is_read_anew(changing, tmp_path):
    path, client = changing
    before = client.get("/api/collection").json()
    new = draw(tmp_path / "new" / "new.png", 40)
    Collection.open(path).add(new, options=OPTIONS)
    after = client.get("/api/collection").json()
    assert after["num_pictures"] == before["num_pictures"] + 1
    assert after["version"] != before["version"]
    assert names(found(client, "k=1", content=new.read_bytes(), headers=BYTES)) == ["new.png"]


def test_an_index_that_breaks_is_told_until_it_is_mended(changing):
    path, client = changing
    assert client.get("/api/search?text=a").status_code == 200
    content = (path / "index.sqlite").read_bytes()
    (path / "index.sqlite").write_bytes(b"no database")
    for address in ("/api/collection", "/api/search?text=a", "/api/duplicates", "/pictures/0/small"):
        answer = client.get(address)
        assert answer.status_code == 503
        assert "damaged" in answer.json()["error"]
    (path / "index.sqlite").unlink()
    assert "is no index" in client.get("/api/collection").json()["error"]
    (path / "index.sqlite").write_bytes(content)
    assert client.get("/api/search?text=a").status_code == 200


def test_an_empty_index_finds_nothing(tmp_path, telling_file):
    empty = Collection.create(tmp_path / "index", ModelSource(checkpoint=str(telling_file)))
    client = TestClient(build_application(empty), base_url=ADDRESS)
    assert client.get("/api/collection").json()["num_pictures"] == 0
    assert found(client, "text=a") == []
    assert client.get("/api/duplicates").json()["groups"] == []


def test_small_pictures_are_kept_within_a_bound(collection):
    numbers = [int(number) for number in collection.snapshot.ids[:3]]
    pictures = [picture_of(collection, number) for number in numbers]
    data = [Thumbnails().get(*one, 64) for one in pictures]
    thumbnails = Thumbnails(num_bytes=len(data[1]) + len(data[2]))
    assert [thumbnails.get(*one, 64) for one in pictures] == data
    kept = [thumbnails.get(*one, 64) for one in pictures[1:]]
    again = [thumbnails.get(*one, 64) for one in pictures[1:]]
    assert all(one is other for one, other in zip(kept, again, strict=True))
    assert thumbnails.get(*pictures[0], 64) is not data[0]


@contextmanager
def sending(address, num_bytes):
    """Hold an upload whose last byte has not come yet."""
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /api/search HTTP/1.1\r\nHost: {host}\r\nContent-Length: {num_bytes + 1}\r\n"
        connection.sendall(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode())
        connection.sendall(bytes(num_bytes))
        yield


def asked_with(address, data):
    request = urllib.request.Request(f"{address}api/search", data=data, headers=BYTES)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["error"]


def test_pictures_that_are_sent_have_a_bound_and_whoever_is_beyond_it_may_come_again(collection, caplog):
    picture, held = (photos(collection) / "2.png").read_bytes(), Uploads()
    with running(collection, held) as address:
        with sending(address, MOST_PICTURE_BYTES - 10), sending(address, MOST_PICTURE_BYTES - 10):
            wait_for(lambda: held.num_free == 20)
            assert asked_with(address, picture) == (
                503,
                "too many pictures are searched with at once; try again in a moment",
            )
        # Both went away before they had sent all of it.
        wait_for(lambda: held.num_free == 2 * MOST_PICTURE_BYTES)
        assert asked_with(address, picture)[0] == 200
    assert held.num_free == 2 * MOST_PICTURE_BYTES
    assert "Traceback" not in caplog.text


def test_one_picture_is_decoded_after_another():
    now, most, waiting = 0, 0, Uploads()

    def work():
        nonlocal now, most
        now += 1
        most = max(most, now)
        time.sleep(0.01)
        now -= 1

    async def several():
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(waiting.in_turn, work)

    anyio.run(several)
    assert (now, most) == (0, 1)


JSON = {"Content-Type": "application/json"}


def judge(client, query, **headers):
    return client.post(f"/api/concepts?{query}", headers={**JSON, **headers})


def test_a_concept_learns_from_what_is_accepted_and_rejected(changing):
    path, client = changing
    assert client.get("/api/collection").json()["concepts"] == []
    asked = "text=%40%22my+bike%22"
    assert judge(client, "name=my+bike").json() == {"name": "my bike", "uses_examples": False, "yes": [], "no": []}
    assert client.get("/api/collection").json()["concepts"] == ["my bike"]
    plain = found(client, asked)
    assert plain == found(client, "text=my+bike")
    last, first = plain[-1]["id"], plain[0]["id"]
    assert judge(client, f"name=my+bike&yes={last}").json()["yes"] == [last]
    assert judge(client, f"name=my+bike&no={first}").json()["no"] == [first]
    answer = client.get(f"/api/search?{asked}").json()
    assert (answer["concept"]["yes"], answer["concept"]["no"]) == ([last], [first])
    if answer["concept"]["uses_examples"]:
        assert answer["matches"][0]["id"] == last
    assert client.get(f"/api/search?{asked}+red").json().get("concept") is None
    assert judge(client, f"name=my+bike&neither={first}").json()["no"] == []
    assert Collection.open(path).concepts["my bike"].described()["no"] == []


def test_other_sites_and_what_is_wrong_change_no_concept(changing):
    path, client = changing
    assert client.post("/api/concepts?name=a").status_code == 415
    assert judge(client, "name=a", Origin="http://evil.example").status_code == 403
    assert judge(client, "name=a", **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.get("/api/concepts?name=a").status_code == 405
    for query, what in (
        ("name=", "concept"),
        ("name=a%22b", "quotation"),
        ("name=a&yes=x", "id"),
        ("name=a&yes=999", "999"),
    ):
        answer = judge(client, query)
        assert answer.status_code == 400
        assert what in answer.json()["error"]
    assert not Collection.open(path).concepts
    assert "no concept" in client.get("/api/search?text=%40%22gone%22").json()["error"]


def test_tags_stand_under_pictures_and_are_a_column(changing):
    path, client = changing
    assert all("tags" not in one for one in found(client, "text=a"))
    Collection.open(path).tag(["a cat", "a hill"], share=0.3, show_progress=False)
    tagged = found(client, "text=a&where=tag%3Da+cat")
    assert 0 < len(tagged) < 8
    assert all("a cat" in one["tags"] for one in tagged)
    columns = {one["name"]: one for one in client.get("/api/columns").json()["columns"]}
    assert columns["tag"] == {"name": "tag", "kind": "tag", "values": ["a cat", "a hill"]}
