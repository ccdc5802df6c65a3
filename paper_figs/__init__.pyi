from . import style as style
from .files import draw_all as draw_all
from .files import draw_paper as draw_paper
from .files import draw_study as draw_study
