from .page import write_list as write_list, write_page as write_page
from .sheet import draw_matches as draw_matches
from .web_file import PROBES as PROBES
