"""Column options of lists and tables, without the code that reads them."""

from __future__ import annotations

import attrs

from mobileclip.strict import strict

SCHEMES = ("http", "https")
"""Of URLs that anyone's file may name."""


@attrs.frozen(kw_only=True, field_transformer=strict)
class RowOptions:
    """Column options of `.jsonl` files and tables (`.parquet`, `.csv`, `.tsv`).

    Where no column is named, the first of the usual names that a table has is taken, whatever its case.

    Args:
        inside: images on this machine must lie below the folder of the file; otherwise its rows name any file.
        schemes: URL schemes that rows may use, such as `https` and `s3`.
        hosts: web servers that rows may name although they are at no public address, such as `127.0.0.1`.
        path_column: column of a table with the images' paths, relative to the table's folder.
        url_column: column of a table with the images' URLs, fetched where a row has no path.
        caption_columns: columns of a table with captions, one or a list of them in a cell.
        uid_column: column of a table with the samples' uids, as DataComp names its samples.
        key_column: of a table: the column with the samples' keys; where there is none, the uid is the key, or the name
            of the table with the number of the row.
        hash_column: of a table: the column with the SHA-256 of the images; one that has another is skipped. It is not
            looked for where none is named, as it may be that of an image before it was resized.
        header: header of a `.csv` or `.tsv` file whose first line has no names: the names of its columns, in their
            order.
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
        """Whether anything is said of a table's columns."""
        return self != RowOptions(inside=self.inside, schemes=self.schemes, hosts=self.hosts)
