"""What is looked at before anything is written."""

import os
from pathlib import Path

import pytest

from mobileclip.storage import require_output, require_output_folder
from tests.errors import fails


@pytest.mark.parametrize(
    ("name", "overwrite", "kind"),
    [
        ("deep/er/new.npz", False, None),
        ("there.npz", False, FileExistsError),
        ("there.npz", True, None),
        ("link.npz", False, FileExistsError),  # to nowhere
        ("folder.npz", True, IsADirectoryError),
        ("there.npz/x.npz", True, NotADirectoryError),
        *((name, True, ValueError) for name in ("e.csv", "e", "npz", "e.npz.gz", ".npz")),
    ],
)
def test_what_is_there_is_kept_unless_a_file_may_be_replaced(tmp_path, name, overwrite, kind):
    (tmp_path / "there.npz").write_bytes(b"work of hours")
    (tmp_path / "link.npz").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.npz").mkdir()
    if kind is None:
        require_output(tmp_path / name, overwrite=overwrite, suffixes=(".npz", ".npy"))
    else:
        with fails(kind, ".npz"):
            require_output(tmp_path / name, overwrite=overwrite, suffixes=(".npz", ".npy"))
    assert {path.name for path in tmp_path.iterdir()} == {"there.npz", "link.npz", "folder.npz"}
    assert (tmp_path / "there.npz").read_bytes() == b"work of hours"


@pytest.mark.skipif(os.geteuid() == 0, reason="this user may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_refused_now(tmp_path):
    tmp_path.chmod(0o500)
    with fails(OSError, "Permission denied"):
        require_output(tmp_path / "x.npz", overwrite=False)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no such folder")
def test_a_folder_that_takes_no_files_is_refused_whatever_its_permissions_say():
    with fails(OSError, "/proc"):
        require_output("/proc/new/x.npz", overwrite=False)


@pytest.mark.parametrize("address", ["s3://bucket/x.npz", Path("https://host/x.npz")])
def test_an_address_is_refused_and_makes_no_folder_of_its_name(address):
    with fails(ValueError):
        require_output(address, overwrite=True)


def test_a_folder_is_replaced_where_it_is_one_of_its_kind(tmp_path):
    folder, card = tmp_path / "out", {"marker": "card.json"}
    require_output_folder(folder, overwrite=False, **card)
    folder.mkdir()
    require_output_folder(folder, overwrite=False, **card)
    (folder / "card.json").touch()
    with fails(FileExistsError):
        require_output_folder(folder, overwrite=False, **card)
    require_output_folder(folder, overwrite=True, **card)
    with fails(NotADirectoryError):
        require_output_folder(folder / "card.json", overwrite=True, **card)
    (folder / "card.json").rename(folder / "thesis.txt")
    with fails(FileExistsError, "card"):
        require_output_folder(folder, overwrite=True, **card)
