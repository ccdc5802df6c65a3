from . import style as style
from .studies import draw_study as draw_study
from .verification import draw_all as draw_all
