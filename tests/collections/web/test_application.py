"""What the server of an index answers, and whom it refuses."""

import io
import os
import re
import shutil
import socket
import time
from contextlib import closing, contextmanager
from http.client import HTTPConnection

import anyio
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from mobileclip.collections import INDEX, Collection, ModelSource
from mobileclip.collections.web.application import build_application
from mobileclip.collections.web.guard import MOST_IMAGE_BYTES, Uploads
from mobileclip.collections.web.served import Thumbnails, image_of
from mobileclip.encoders.checkpoints import PACKAGED
from tests.collections.pictures import add, draw, draw_all, pack
from tests.collections.web.served import running
from tests.datasets.made_videos import film, scene
from tests.waiting import wait_for

ADDRESS = "http://127.0.0.1:8000"
BYTES = {"Content-Type": "application/octet-stream"}


def client_of(collection, **options):
    return TestClient(build_application(collection), base_url=ADDRESS, **options)


@pytest.fixture(scope="module")
def client(collection):
    return client_of(collection)


@pytest.fixture
def changing(collection, tmp_path):
    """The same index in a folder of its own, with a client that asks for it, and may meet errors."""
    copied = Collection.open(shutil.copytree(collection.path, tmp_path / "index"))
    return copied.path, client_of(copied, raise_server_exceptions=False)


def found(client, query="", **given):
    answer = client.request("POST" if given else "GET", f"/api/search?{query}", **given)
    assert answer.status_code == 200, answer.text
    return answer.json()["matches"]


def names(matches):
    return sorted(match["path"].rsplit("/", 1)[1] for match in matches)


def scores(matches):
    return [match["score"] for match in matches]


def columns_of(client):
    return {one.pop("name"): one for one in client.get("/api/columns").json()["columns"]}


def statuses(client, addresses):
    return [client.get(address).status_code for address in addresses]


def test_the_page_is_there_and_runs_nothing_but_its_own_files(client):
    scripts = re.findall(r'src="([^"]+\.js)"', client.get("/").text)
    assert scripts
    kinds = {"/": "html", "/search.css": "css", "/icon.svg": "svg", "/page.js": "javascript"}
    for path, kind in kinds.items() | {(f"/{one.lstrip('/')}", "javascript") for one in scripts}:
        answer = client.get(path)
        assert (answer.status_code, kind in answer.headers["content-type"]) == (200, True)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'")
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert ("unsafe" in policy, "innerHTML" in answer.text) == (False, False)
        assert "access-control-allow-origin" not in answer.headers


def test_a_search_finds_what_the_collection_finds(client, collection):
    matches, expected = found(client, "text=a+cat&k=8"), collection.search("a cat", k=8)
    assert [(one["id"], one["score"], one["width"]) for one in matches] == [(one.id, one.score, 96) for one in expected]
    assert [*found(client, "text=a+cat&k=3"), *found(client, "text=a+cat&skip=3&k=60")] == matches
    assert found(client, "text=a+cat&skip=8") == []
    (group,) = client.get("/api/duplicates?threshold=0.998").json()["groups"]
    assert names(group) == ["2.png", "copy of 2.png"]
    turned = found(client, "text=a+cat&not=a+dog" + "&where=width>1" * 16)
    assert scores(turned) == [one.score for one in collection.search("a cat", without="a dog", k=60)]
    assert names(found(client, "text=a&where=path~4.png&where=width%3E1")) == ["4.png"]
    (known,) = found(client, "text=a&where=path~photos/2.png")
    assert names(found(client, f"like={known['id']}&k=2")) == ["2.png", "copy of 2.png"]
    (harmful,) = found(client, "text=a&where=path~script")
    assert (harmful["name"].isprintable(), "\\x1b[31m" in harmful["name"]) == (True, True)


@pytest.mark.parametrize("query", ["text=a+cat", "text=a+cat&not=a+dog", "like={like}"])
def test_a_map_of_a_match_sums_to_its_score(client, query):
    query = query.format(like=found(client, "text=a")[3]["id"])
    for match in found(client, f"{query}&k=2"):
        answer = client.get(f"/api/explain/{match['id']}?{query}").json()
        assert np.shape(answer["map"]) == (4, 4)
        assert np.sum(answer["map"]) == pytest.approx(answer["score"], abs=1e-5)
        # The index keeps embeddings in float16.
        assert answer["score"] == pytest.approx(match["score"], abs=2e-3)


def test_a_picture_of_ones_own_is_searched_with_and_explained(client, collection):
    path = collection.path.parent / "photos" / "4.png"
    given = {"content": path.read_bytes(), "headers": BYTES}
    (best,) = found(client, "k=1", **given)
    assert names([best]) == ["4.png"]
    both = found(client, "text=a+cat", **given)
    assert scores(both) == [one.score for one in collection.search("a cat", image=path, k=60)]
    answer = client.post(f"/api/explain/{best['id']}", **given).json()
    assert answer["score"] == pytest.approx(1, abs=2e-3)
    assert statuses(client, ["/api/explain/999999?text=a", f"/api/explain/{best['id']}"]) == [404, 400]
    for content, headers, status in (
        (b"no picture \x1b[31m", BYTES, 400),
        (b"", BYTES, 400),
        (b"x" * (MOST_IMAGE_BYTES + 1), BYTES, 413),
        (b"x", {"Content-Type": "text/plain"}, 415),
    ):
        answer = client.post("/api/search", content=content, headers=headers)
        assert (answer.status_code, "\x1b" in answer.json()["error"]) == (status, False)


def test_the_start_page_says_what_the_collection_is(client, collection):
    about = client.get("/api/collection").json()
    assert (about["model"], about["num_images"], about["dim"]) == (str(collection.store.about.model), 8, 24)
    assert (about["explains"], about["limits"]) == (True, "")
    examples = client.get("/api/examples").json()["examples"]
    assert 0 < len({one["id"] for one in examples}) == len(examples) <= 6
    columns = columns_of(client)
    assert (columns["width"], columns["path"]["kind"]) == ({"kind": "number", "least": 96, "most": 96}, "text")
    assert not columns.keys() & {"camera", "taken", "latitude", "time", "part", "sha256"}


def test_pictures_are_made_small_and_without_notes(client):
    (known,) = found(client, "text=a&where=path~photos/3.png")
    for size in ("small", "large"):
        answer = client.get(f"/images/{known['id']}/{size}")
        image = Image.open(io.BytesIO(answer.content))
        assert (answer.headers["content-type"], image.format, image.size) == ("image/webp", "WEBP", (96, 80))
        assert "exif" not in image.info
    wrong = (f"{known['id']}/huge", "999999/small", "..%2f..%2fetc%2fpasswd/small")
    assert statuses(client, [f"/images/{one}" for one in wrong]) == [404] * 3


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("search?", ""),
        *((f"search?text=a&{one}", one.split("=")[0]) for one in ("k=0", "skip=-1")),
        *((f"search?text=a&{one}", one.split("=")[1]) for one in ("k=x", "frames=some")),
        ("search?text=a&where=colour%3Dred", "colour"),
        *((f"search?like={one}", f"{one}") for one in (999999, 2**80, -1)),
        *(("search?text=a+cat" + one * 17, "") for one in ("&not=a+dog", "&where=width>1")),
        ("search?text=%40%22gone%22", "gone"),
        *((f"duplicates?threshold={one}", "") for one in ("0", "2", "nan", "x")),
    ],
)
def test_what_is_wrong_is_said(client, query, said):
    answer = client.get(f"/api/{query}")
    assert answer.status_code == 400
    assert said in answer.json()["error"]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        *((403, {"Host": one}) for one in ("evil.example", "127.0.0.1.evil.example:8000", "")),
        *((403, {"Origin": one}) for one in ("http://evil.example", "null", "http://127.0.0.1:9000")),
        (403, {"Sec-Fetch-Site": "cross-site"}),
        (403, {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"}),
        (200, {"Origin": ADDRESS, "Sec-Fetch-Site": "same-origin"}),
        (200, {"Host": "localhost:8000"}),
    ],
)
def test_other_sites_are_refused_and_the_page_itself_is_not(client, status, headers):
    answer = client.get("/api/collection", headers=headers)
    assert (answer.status_code, "num_images" in answer.json()) == (status, status == 200)
    assert (client.options("/api/search", headers=headers).status_code == 403) == (status == 403)
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200


@pytest.mark.parametrize("model", ["icons", "icons-multilingual"])
def test_an_empty_index_finds_nothing_and_what_its_model_cannot_do_comes_from_the_card(tmp_path, model):
    client = client_of(Collection.create(tmp_path / "index", ModelSource(model=model)))
    about = client.get("/api/collection").json()
    assert (about["num_images"], found(client, "text=a")) == (0, [])
    assert client.get("/api/duplicates").json()["groups"] == []
    card = PACKAGED[model].with_name(f"{model}.md").read_text(encoding="utf-8")
    assert about["limits"].startswith("Not for ")
    assert about["limits"].removeprefix("Not for ") in " ".join(card.split())


def test_pictures_are_shown_until_their_file_is_gone_or_another_one(make, tmp_path):
    pack(tmp_path / "00.tar", 10, 11, 12)
    other, folder = draw(tmp_path / "5.png", 5), draw_all(tmp_path / "photos", range(3))
    client = client_of(make("index", folder, tmp_path / "00.tar"))
    numbers = {one["file"]: one["id"] for one in found(client, "text=a")}
    shown = [f"/images/{numbers[name]}/small" for name in ("0.png", "1.png", "2.png", "0010", "0011", "0012")]
    assert statuses(client, shown) == [200] * 6
    assert len({client.get(address).content for address in shown}) == 6
    (folder / "0.png").unlink()
    (folder / "1.png").unlink()
    (folder / "1.png").symlink_to(other)
    os.utime(folder / "2.png", (1, 1))
    (tmp_path / "00.tar").unlink()
    pack(tmp_path / "00.tar", 10, 13)
    assert statuses(client, shown) == [410, 410, 200, 200, 410, 410]


def test_frames_are_shown_and_their_video_is_sent(make, tmp_path):
    path = film(tmp_path / "videos/clip.webm", [1, 2, 3], codec="libvpx")
    still = draw(tmp_path / "videos/0.png", 0)
    client = client_of(make("index", tmp_path / "videos", video_seconds=2))
    (best,) = found(client, "text=a&where=time>=0")
    frames = found(client, "text=a&where=time>=0&frames=all")
    assert (best, sorted(one["time"] for one in frames)) == (frames[0], [0, 2, 4])
    one = next(one for one in frames if one["time"] == 4)
    assert one["file"] == "clip.webm 0:04"
    small = Image.open(io.BytesIO(client.get(f"/images/{one['id']}/small").content))
    assert np.abs(np.asarray(small).astype(int) - np.asarray(scene(3))).mean() < 12
    (picture,) = (match for match in found(client, "text=a") if "time" not in match)
    originals = [f"/originals/{match['id']}" for match in (one, picture)]
    for address, file, kind in zip(originals, (path, still), ("video/webm", "image/png"), strict=True):
        sent = client.get(address)
        assert (sent.status_code, sent.headers["content-type"], sent.content) == (200, kind, file.read_bytes())
    part = client.get(originals[0], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, path.read_bytes()[10:20])
    assert client.get(originals[0], headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    film(path, [5], codec="libvpx")
    draw(still, 1)
    assert statuses(client, [*originals, f"/images/{one['id']}/small"]) == [410] * 3


def test_an_index_that_changes_is_read_anew_and_one_that_breaks_is_told_until_it_is_mended(changing, tmp_path):
    path, client = changing
    before, new = client.get("/api/collection").json(), draw(tmp_path / "new" / "new.png", 40)
    add(Collection.open(path), new, num_workers=1)
    after = client.get("/api/collection").json()
    assert (after["num_images"], after["version"] == before["version"]) == (before["num_images"] + 1, False)
    assert names(found(client, "k=1", content=new.read_bytes(), headers=BYTES)) == ["new.png"]
    content = (path / INDEX).read_bytes()
    (path / INDEX).write_bytes(b"no database")
    asked = ("/api/collection", "/api/search?text=a", "/api/duplicates", "/images/0/small")
    assert statuses(client, asked) == [503] * 4
    (path / INDEX).unlink()
    assert statuses(client, asked[:1]) == [503]
    (path / INDEX).write_bytes(content)
    assert statuses(client, asked[:2]) == [200] * 2


@contextmanager
def sending(address, num_bytes):
    """Hold an upload whose last byte has not come yet."""
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /api/search HTTP/1.1\r\nHost: {host}\r\nContent-Length: {num_bytes + 1}\r\n"
        connection.sendall(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode())
        connection.sendall(bytes(num_bytes))
        yield


def test_pictures_that_are_sent_have_a_bound_and_whoever_is_beyond_it_may_come_again(collection, caplog):
    picture, held = (collection.path.parent / "photos" / "2.png").read_bytes(), Uploads()

    def status():
        with closing(HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=60)) as connection:
            connection.request("POST", "/api/search", picture, BYTES)
            return connection.getresponse().status

    with running(collection, held) as address:
        with sending(address, MOST_IMAGE_BYTES - 10), sending(address, MOST_IMAGE_BYTES - 10):
            wait_for(lambda: held.num_free == 20)
            assert status() == 503
        # Both went away before they had sent all of it.
        wait_for(lambda: held.num_free == 2 * MOST_IMAGE_BYTES)
        assert status() == 200
    assert held.num_free == 2 * MOST_IMAGE_BYTES
    assert "Traceback" not in caplog.text


def test_small_pictures_are_kept_within_a_bound(collection):
    one, other = (image_of(collection, int(number)) for number in collection.snapshot.ids[:2])
    thumbnails = Thumbnails(num_bytes=max(len(Thumbnails().get(*each, 64)) for each in (one, other)))
    first = thumbnails.get(*one, 64)
    assert thumbnails.get(*one, 64) is first
    thumbnails.get(*other, 64)
    again = thumbnails.get(*one, 64)
    assert (again == first, again is first) == (True, False)


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


def judge(client, query, **headers):
    return client.post(f"/api/concepts?{query}", headers={"Content-Type": "application/json", **headers})


def test_a_concept_learns_from_what_is_accepted_and_rejected(changing):
    path, client = changing
    asked = "text=%40%22my+bike%22"
    assert client.get("/api/collection").json()["concepts"] == []
    assert judge(client, "name=my+bike").json() == {"name": "my bike", "uses_examples": False, "yes": [], "no": []}
    assert client.get("/api/collection").json()["concepts"] == ["my bike"]
    plain = found(client, asked)
    assert plain == found(client, "text=my+bike")
    last, first = plain[-1]["id"], plain[0]["id"]
    assert judge(client, f"name=my+bike&yes={last}").json()["yes"] == [last]
    assert judge(client, f"name=my+bike&no={first}").json()["no"] == [first]
    concept = client.get(f"/api/search?{asked}").json()["concept"]
    assert (concept["yes"], concept["no"]) == ([last], [first])
    assert client.get(f"/api/search?{asked}+red").json().get("concept") is None
    assert judge(client, f"name=my+bike&neither={first}").json()["no"] == []
    assert Collection.open(path).concepts["my bike"].to_dict()["no"] == []


def test_other_sites_and_what_is_wrong_change_no_concept(changing):
    path, client = changing
    assert client.post("/api/concepts?name=a").status_code == 415
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert judge(client, "name=a", **headers).status_code == 403
    assert client.get("/api/concepts?name=a").status_code == 405
    for query in ("name=", "name=a%22b", "name=a&yes=x", "name=a&yes=999"):
        assert judge(client, query).status_code == 400
    assert not Collection.open(path).concepts


def test_tags_stand_under_pictures_and_are_a_column(changing):
    path, client = changing
    assert all("tags" not in one for one in found(client, "text=a"))
    Collection.open(path).tag(["a cat", "a hill"], share=0.3, show_progress=False)
    tagged = found(client, "text=a&where=tag%3Da+cat")
    assert 0 < len(tagged) < 8
    assert all("a cat" in one["tags"] for one in tagged)
    assert columns_of(client)["tag"] == {"kind": "tag", "values": ["a cat", "a hill"]}
