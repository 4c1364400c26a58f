"""Videos to pictures: single frames, upright, by the time at which they are shown.

Sound, subtitles and whatever else a file holds are never read.
"""
