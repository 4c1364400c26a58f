"""Joins reinforced shards that were published without images with the images.

What finds, checks and matches the two belongs here; reading the outcome is for `data.loading`.
"""

from mobileclip.datasets.joining.image_index import ImageIndex as ImageIndex
from mobileclip.datasets.joining.image_scan import ScanUnit as ScanUnit
from mobileclip.datasets.joining.join import join_images as join_images
from mobileclip.datasets.joining.matching import (
    MATCH as MATCH,
    MatchCounts as MatchCounts,
    Matches as Matches,
    find_names as find_names,
    first_of_each as first_of_each,
    read_matches as read_matches,
)
from mobileclip.datasets.joining.placeholders import find_placeholders as find_placeholders
from mobileclip.datasets.joining.records import (
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
from mobileclip.datasets.joining.report import LEDGER as LEDGER, JoinReport as JoinReport
from mobileclip.datasets.joining.spec import JoinSpec as JoinSpec
from mobileclip.datasets.joining.urls import COLUMNS as COLUMNS, SUFFIXES as SUFFIXES, write_urls as write_urls
