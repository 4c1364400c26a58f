"""Files on this machine or at a URL such as `s3://bucket/key` or `https://host/file`.

What reads, writes, names or removes a file belongs here; what is in the file does not.
Reading and writing ask for a connection only when they are called, and import what they need then. `http:` and `https:`
need no further package; other URLs are opened by fsspec and what it needs (extra `remote`).
Credentials and endpoints are those of the store's own configuration and environment (`AWS_*`, `FSSPEC_*`).
"""

from mobileclip.storage.addresses import AnyPath, check_address, file_name, is_remote, is_same, is_web, join, local_path
from mobileclip.storage.allowed_hosts import connect as connect, public_hosts_only as public_hosts_only  # for the house
from mobileclip.storage.atomic import atomic_folder, atomic_path
from mobileclip.storage.backend import StorageError, is_transient
from mobileclip.storage.cache import FileCache
from mobileclip.storage.content import content_hash, content_hashes
from mobileclip.storage.exclusive import LOCK, exclusive
from mobileclip.storage.files import (
    atomic_file,
    atomic_write,
    exists,
    file_version,
    fingerprint,
    is_directory,
    local_copy,
    make_directory,
    make_directory_of,
    modified_ns,
    open_read,
    read_bytes,
    read_if_there,
    remove,
    rename,
    size,
    write_text,
    write_text_if,
)
from mobileclip.storage.leftovers import is_left_over
from mobileclip.storage.limits import StoreLimits, store_limits, use_limits
from mobileclip.storage.listing import find_files, find_sizes, is_hidden, list_files
from mobileclip.storage.outputs import holds_anything, require_output, require_output_folder
from mobileclip.storage.printable import printable, without_secrets
from mobileclip.storage.state import cache_folder, state_folder

__all__ = [
    "LOCK",
    "AnyPath",
    "FileCache",
    "StorageError",
    "StoreLimits",
    "atomic_file",
    "atomic_folder",
    "atomic_path",
    "atomic_write",
    "cache_folder",
    "check_address",
    "content_hash",
    "content_hashes",
    "exclusive",
    "exists",
    "file_name",
    "file_version",
    "find_files",
    "find_sizes",
    "fingerprint",
    "holds_anything",
    "is_directory",
    "is_hidden",
    "is_left_over",
    "is_remote",
    "is_same",
    "is_transient",
    "is_web",
    "join",
    "list_files",
    "local_copy",
    "local_path",
    "make_directory",
    "make_directory_of",
    "modified_ns",
    "open_read",
    "printable",
    "read_bytes",
    "read_if_there",
    "remove",
    "rename",
    "require_output",
    "require_output_folder",
    "size",
    "state_folder",
    "store_limits",
    "use_limits",
    "without_secrets",
    "write_text",
    "write_text_if",
]
