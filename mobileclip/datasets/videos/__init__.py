"""Decodes single frames of videos, upright, by time.

Sound, subtitles and whatever else a file holds are never read.
"""

from mobileclip.datasets.videos.formats import (
    VIDEO_EXTENSIONS as VIDEO_EXTENSIONS,
    VIDEO_FORMATS as VIDEO_FORMATS,
    find_video_format as find_video_format,
    is_video_name as is_video_name,
    named_format as named_format,
)
from mobileclip.datasets.videos.opening import VideoFile as VideoFile
