from .files import (
    FolderFiles as FolderFiles,
    describe_left_out as describe_left_out,
    find_images as find_images,
    list_folder as list_folder,
    printable_name as printable_name,
)
from .jpeg import bare_jpeg as bare_jpeg, cut_below as cut_below, decode_jpeg as decode_jpeg, read_frame as read_frame
from .limits import (
    IMAGE_EXTENSIONS as IMAGE_EXTENSIONS,
    IMAGE_FORMATS as IMAGE_FORMATS,
    ImageError as ImageError,
    ImageLimits as ImageLimits,
    find_format as find_format,
    format_names as format_names,
    is_image_name as is_image_name,
)
from .metadata import (
    CameraNotes as CameraNotes,
    read_camera_notes as read_camera_notes,
    read_orientation as read_orientation,
)
from .opening import open_image as open_image, raw_preview as raw_preview, read_image_file as read_image_file
from .resize import Pixels as Pixels, resize as resize, resized_crop as resized_crop
from .transform import (
    LIMITS as LIMITS,
    READING as READING,
    ImageSource as ImageSource,
    ImageTransform as ImageTransform,
    is_one_image as is_one_image,
    load_image as load_image,
    name_of as name_of,
    normalize_pixels as normalize_pixels,
    read_pixels as read_pixels,
    read_tower_image as read_tower_image,
)
