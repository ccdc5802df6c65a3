from . import style as style
from .paper import draw_paper as draw_paper
from .studies import draw_study as draw_study
from .verification import draw_all as draw_all
