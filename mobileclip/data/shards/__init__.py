"""Shards: tar files of samples, reading and writing them, and the card of a data set.

What the members of a sample mean is for `data.samples`, and in which order shards are read for `data.loading`.
"""

from mobileclip.data.shards.card import (
    CARD as CARD,
    CaptionerEntry as CaptionerEntry,
    ReinforcementCard as ReinforcementCard,
    TeacherEntry as TeacherEntry,
    ViewAgreement as ViewAgreement,
    card_of_shards as card_of_shards,
    find_card as find_card,
    read_card as read_card,
    write_card as write_card,
)
from mobileclip.data.shards.counts import (
    MANIFEST as MANIFEST,
    MOST_COUNTED as MOST_COUNTED,
    read_sizes as read_sizes,
    shard_folder as shard_folder,
    shard_sizes as shard_sizes,
    write_sizes as write_sizes,
)
from mobileclip.data.shards.files import (
    RawSample as RawSample,
    Shards as Shards,
    count_samples as count_samples,
    expand_shards as expand_shards,
    is_here as is_here,
    parse as parse,
    read_reinforced_samples as read_reinforced_samples,
    read_samples as read_samples,
    read_shard as read_shard,
    runs_program as runs_program,
    write_shard as write_shard,
    write_shard_members as write_shard_members,
    write_shards as write_shards,
)
from mobileclip.data.shards.tar import (
    ForwardReader as ForwardReader,
    TarMember as TarMember,
    by_key as by_key,
    forward_reader as forward_reader,
    member_key as member_key,
    read_content as read_content,
    read_members as read_members,
    read_up_to as read_up_to,
    split_name as split_name,
    tar_members as tar_members,
    write_end as write_end,
    write_member as write_member,
)
