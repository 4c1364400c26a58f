from .anew import ReadAnew as ReadAnew, encode_anew as encode_anew
from .findings import Findings as Findings, Recognised as Recognised
from .options import IndexOptions as IndexOptions
from .reader import FileReader as FileReader, FileTask as FileTask, KnownContent as KnownContent
from .scanning import FoundFile as FoundFile, Scan as Scan, estimated_pictures as estimated_pictures, scan as scan
