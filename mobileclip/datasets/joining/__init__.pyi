from .index import (
    NAME as NAME,
    NAMES as NAMES,
    PLACE as PLACE,
    PLACES as PLACES,
    ImageIndex as ImageIndex,
    ScanUnit as ScanUnit,
    ShardMetadata as ShardMetadata,
    name_hash as name_hash,
    read_records as read_records,
    read_shard_metadata as read_shard_metadata,
    records_path as records_path,
    write_records as write_records,
)
from .join import join_images as join_images
from .matching import (
    MATCH as MATCH,
    MatchCounts as MatchCounts,
    Matches as Matches,
    match_images as match_images,
    match_names as match_names,
    read_matches as read_matches,
)
from .report import LEDGER as LEDGER, JoinReport as JoinReport
from .spec import JoinSpec as JoinSpec
from .urls import COLUMNS as COLUMNS, SUFFIXES as SUFFIXES, write_urls as write_urls
