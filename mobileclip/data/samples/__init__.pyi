from .compact import (
    MAX_HEADER_BYTES as MAX_HEADER_BYTES,
    CompactRecord as CompactRecord,
    round_to_bfloat16 as round_to_bfloat16,
    write_record as write_record,
)
from .embeddings import (
    Embeddings as Embeddings,
    read_embeddings as read_embeddings,
    write_npz as write_npz,
    write_pth_gz as write_pth_gz,
)
from .inflate import (
    InflatedFile as InflatedFile,
    InflateStream as InflateStream,
    TooLargeError as TooLargeError,
    gunzip as gunzip,
)
from .json_object import parse_object as parse_object
from .limits import MAX_DIM as MAX_DIM, SAMPLE_LIMITS as SAMPLE_LIMITS, SampleLimits as SampleLimits
from .members import (
    RECORD as RECORD,
    check_layout as check_layout,
    json_captions as json_captions,
    parse_reinforced_sample as parse_reinforced_sample,
    parse_sample as parse_sample,
    parse_stored_sample as parse_stored_sample,
    sample_members as sample_members,
)
from .npz import NpzRows as NpzRows, read_npy as read_npy
from .sample import (
    LAYOUTS as LAYOUTS,
    MAX_KEY_BYTES as MAX_KEY_BYTES,
    SYN_NAME as SYN_NAME,
    SYN_TEXT as SYN_TEXT,
    AugmentedSample as AugmentedSample,
    ImageTextSample as ImageTextSample,
    Layout as Layout,
    ReinforcedSample as ReinforcedSample,
    StoredSample as StoredSample,
    check_key as check_key,
    check_source_image as check_source_image,
    decode_image as decode_image,
    drop_blank as drop_blank,
    hash_image as hash_image,
    is_showable as is_showable,
)
from .torch_file import TorchRows as TorchRows, described_tensors as described_tensors
from .uids import (
    HEX as HEX,
    PAIR as PAIR,
    Uids as Uids,
    sorted_uids as sorted_uids,
    uid_of as uid_of,
    write_uids as write_uids,
)
from .views import StoredViews as StoredViews
from .zips import Member as Member, zip_members as zip_members
