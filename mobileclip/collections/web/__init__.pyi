from .application import build_application as build_application
from .served import picture_of as picture_of
from .thumbnails import Thumbnails as Thumbnails
from .uploads import MOST_PICTURE_BYTES as MOST_PICTURE_BYTES, Uploads as Uploads
