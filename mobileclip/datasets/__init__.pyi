from .inspection import (
    SIDE as SIDE,
    Section as Section,
    Thumbnail as Thumbnail,
    load_shown as load_shown,
    write_images as write_images,
)
from .labelled import (
    ClassData as ClassData,
    LabelledMaker as LabelledMaker,
    LabelledPipeline as LabelledPipeline,
    LabelledPipelineSpec as LabelledPipelineSpec,
    LabelledSample as LabelledSample,
    LabelParser as LabelParser,
    find_class_names as find_class_names,
    open_class_data as open_class_data,
)
from .sources import (
    ClassFolderSource as ClassFolderSource,
    FolderSource as FolderSource,
    JsonLinesSource as JsonLinesSource,
    RowOptions as RowOptions,
    ShardSource as ShardSource,
    Source as Source,
    TableSource as TableSource,
    Unit as Unit,
    as_source as as_source,
    open_data_set as open_data_set,
)
from .sources.opening import shards_of as shards_of
from .videos import (
    VIDEO_EXTENSIONS as VIDEO_EXTENSIONS,
    VideoFile as VideoFile,
    is_video_name as is_video_name,
    named_format as named_format,
)
