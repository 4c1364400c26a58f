"""Reads and writes files on this machine or at a URL such as `s3://bucket/key` or `https://host/file`.

This subpackage reads, writes, renames and removes files, and does not interpret the content. Importing the subpackage
opens no connection and loads no optional package. `http:` and `https:` URLs need no optional package; fsspec opens
other URLs (extra `remote`). Credentials and endpoints come from the configuration of each store and from environment
variables (`AWS_*`, `FSSPEC_*`).
"""

from mobileclip.storage.atomic import (
    LOCK as LOCK,
    atomic_folder as atomic_folder,
    atomic_path as atomic_path,
    exclusive as exclusive,
    has_content as has_content,
    is_left_over as is_left_over,
    require_output as require_output,
    require_output_folder as require_output_folder,
)
from mobileclip.storage.backend import (
    StorageError as StorageError,
    StoreLimits as StoreLimits,
    is_transient as is_transient,
    public_hosts_only as public_hosts_only,
    store_limits as store_limits,
    use_limits as use_limits,
)
from mobileclip.storage.cache import (
    FileCache as FileCache,
    cache_folder as cache_folder,
    state_folder as state_folder,
)
from mobileclip.storage.files import (
    atomic_file as atomic_file,
    atomic_write as atomic_write,
    check_address as check_address,
    content_hash as content_hash,
    content_hashes as content_hashes,
    exists as exists,
    find_files as find_files,
    find_sizes as find_sizes,
    fingerprint as fingerprint,
    is_directory as is_directory,
    is_hidden as is_hidden,
    list_files as list_files,
    local_copy as local_copy,
    make_directory as make_directory,
    make_directory_of as make_directory_of,
    modified_ns as modified_ns,
    open_read as open_read,
    read_bytes as read_bytes,
    read_if_exists as read_if_exists,
    remove as remove,
    rename as rename,
    size as size,
    write_text as write_text,
)
from mobileclip.storage.urls import (
    AnyPath as AnyPath,
    absolute_path as absolute_path,
    file_name as file_name,
    is_remote as is_remote,
    is_same as is_same,
    is_web as is_web,
    join as join,
    local_path as local_path,
    printable as printable,
    without_secrets as without_secrets,
)
