"""What is looked at before anything is written."""

import os
from pathlib import Path

import pytest

from mobileclip.storage import require_output, require_output_folder
from tests.errors import fails


def test_a_new_file_may_be_written_and_is_not_made(tmp_path):
    require_output(tmp_path / "deep" / "er" / "new.npz", overwrite=False, suffixes=(".npz",))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept_unless_it_may_be_replaced(tmp_path):
    there = tmp_path / "there.npz"
    there.write_bytes(b"work of hours")
    with fails(FileExistsError):
        require_output(there, overwrite=False)
    require_output(there, overwrite=True)
    assert there.read_bytes() == b"work of hours"


def test_a_link_to_nowhere_is_there(tmp_path):
    (tmp_path / "link.npz").symlink_to(tmp_path / "nowhere")
    with fails(FileExistsError):
        require_output(tmp_path / "link.npz", overwrite=False)


@pytest.mark.parametrize("name", ["e.csv", "e", "npz", "e.npz.gz", ".npz"])
def test_another_kind_of_file_is_refused_with_the_known_ones(tmp_path, name):
    with fails(ValueError, ".npz or .npy"):
        require_output(tmp_path / name, overwrite=True, suffixes=(".npz", ".npy"))


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").touch()
    with fails(IsADirectoryError):
        require_output(tmp_path / "folder.npz", overwrite=True, suffixes=(".npz",))
    with fails(NotADirectoryError):
        require_output(tmp_path / "file" / "x.npz", overwrite=True)
    with fails(NotADirectoryError):
        require_output_folder(tmp_path / "file", overwrite=True, marker="card.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="this user may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_refused_now(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Permission denied"):
        require_output(tmp_path / "x.npz", overwrite=False)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no such folder")
def test_a_folder_that_takes_no_files_is_refused_whatever_its_permissions_say():
    with fails(OSError, "/proc"):
        require_output("/proc/new/x.npz", overwrite=False)


@pytest.mark.parametrize("address", ["s3://bucket/x.npz", Path("s3://bucket/x.npz"), Path("https://host/x.npz")])
def test_an_address_is_refused_and_makes_no_folder_of_its_name(address):
    with fails(ValueError):
        require_output(address, overwrite=True)


def test_a_folder_is_replaced_where_it_is_one_of_its_kind(tmp_path):
    folder = tmp_path / "out"
    require_output_folder(folder, overwrite=False, marker="card.json")
    folder.mkdir()
    require_output_folder(folder, overwrite=False, marker="card.json")
    (folder / "card.json").touch()
    with fails(FileExistsError):
        require_output_folder(folder, overwrite=False, marker="card.json")
    require_output_folder(folder, overwrite=True, marker="card.json")
    (folder / "card.json").rename(folder / "thesis.txt")
    with fails(FileExistsError, "card"):
        require_output_folder(folder, overwrite=True, marker="card.json")
