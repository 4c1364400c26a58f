from .image_index import ImageIndex as ImageIndex
from .image_scan import ScanUnit as ScanUnit
from .join import join_images as join_images
from .matching import (
    MATCH as MATCH,
    MatchCounts as MatchCounts,
    Matches as Matches,
    match_names as match_names,
    read_matches as read_matches,
)
from .placeholders import find_placeholders as find_placeholders
from .records import (
    NAME as NAME,
    NAMES as NAMES,
    PLACE as PLACE,
    PLACES as PLACES,
    AboutShard as AboutShard,
    name_hash as name_hash,
    read_about as read_about,
    read_records as read_records,
    records_path as records_path,
    write_records as write_records,
)
from .report import LEDGER as LEDGER, JoinReport as JoinReport
from .spec import JoinSpec as JoinSpec
from .urls import COLUMNS as COLUMNS, SUFFIXES as SUFFIXES, write_urls as write_urls
