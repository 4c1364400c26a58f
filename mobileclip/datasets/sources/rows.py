"""Column options of lists and tables, separate from the code that reads lists and tables."""

from __future__ import annotations

import attrs

from mobileclip.strict import strict

SCHEMES = ("http", "https")
"""URL schemes that untrusted files may name."""


@attrs.frozen(kw_only=True, field_transformer=strict)
class RowOptions:
    """Column options of `.jsonl` files and tables (`.parquet`, `.csv`, `.tsv`).

    For a column without a given name, the reader uses the first usual name in the table, ignoring case.

    Args:
        inside: whether local images must be below the folder of the file; otherwise its rows may name any file.
        schemes: URL schemes that rows may use, such as `https` and `s3`.
        hosts: web servers without a public address that rows may name, such as `127.0.0.1`.
        path_column: column of a table with image paths, relative to the table's folder.
        url_column: column of a table with image URLs, used for rows without a path.
        caption_columns: columns of a table with captions; a cell has one caption or a list of captions.
        uid_column: column of a table with uids, DataComp's names of samples.
        key_column: column of a table with keys. Without this column, the key is the uid, or the name of the table with
            the number of the row.
        hash_column: column of a table with the SHA-256 of images; the reader skips images with another hash. There is
            no default name, as a table may have the hashes of images before resizing.
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
