from .findings_writer import MARK as MARK, FindingsWriter as FindingsWriter
from .report import IndexReport as IndexReport
from .units import units_of as units_of
from .update import forget as forget, update as update
