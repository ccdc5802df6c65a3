from . import closed_form as closed_form
from .claims.verify import verify as verify
from .collapse import collapse_report as collapse_report
from .design import design as design
from .predict import predict as predict
from .studies import calibrate as calibrate
from .studies import forecast as forecast
from .sweeps import summarize as summarize
