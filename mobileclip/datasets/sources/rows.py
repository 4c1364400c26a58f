"""Defines the column, file and server options for reading lists and tables."""

from __future__ import annotations

import attrs

from mobileclip.strict import strict

SCHEMES = ("http", "https")
"""URL schemes that rows of untrusted files may use by default."""


@attrs.frozen(kw_only=True, field_transformer=strict)
class RowOptions:
    """Allowed files and servers, and column names, for rows of `.jsonl` files and tables (`.parquet`, `.csv`, `.tsv`).

    For a column without a given name, the reader tries common column names in order, ignoring case.

    Args:
        inside: whether local images must be below the folder of the list; if False, rows may name any local file.
        schemes: URL schemes that rows may use, such as `https` and `s3`.
        hosts: allowed web servers without a public address, such as `127.0.0.1`.
        path_column: name of the column with image paths, relative to the table's folder.
        url_column: name of the column with image URLs, used for rows without a path.
        caption_columns: names of the columns with captions; a cell has one caption or a list of captions.
        uid_column: name of the column with uids, the names of samples in DataComp.
        key_column: name of the column with keys. Without this column, the key is the uid, or the name of the table with
            the number of the row.
        hash_column: name of the column with the SHA-256 of images; None for no check. The reader skips images with a
            different hash. There is no default name, because a table may have hashes of images before resizing.
        header: names of the columns, in order, for a `.csv` or `.tsv` file without a header line.
    """

    inside: bool = True
    schemes: tuple[str, ...] = SCHEMES
    hosts: tuple[str, ...] = ()
    path_column: str | None = None
    url_column: str | None = None
    caption_columns: tuple[str, ...] = ()
    uid_column: str | None = None
    key_column: str | None = None
    hash_column: str | None = None
    header: tuple[str, ...] = ()

    @property
    def names_columns(self) -> bool:
        """Whether the options name any column of a table."""
        return self != RowOptions(inside=self.inside, schemes=self.schemes, hosts=self.hosts)
