from . import style as style
from .verification import draw_all as draw_all
