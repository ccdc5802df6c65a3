"""Knobs for the explorer, in a notebook: every turn is answered from closed forms, at once.

Where no widgets can be shown, on a page that was made from a notebook, its last picture stands.
Needs ipywidgets, `pip install 'fedlora-sim[notebooks]'`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from io import BytesIO
from typing import Any

import ipywidgets

from analysis.closed_form import RULES
from analysis.explorer import POLICIES, Exploration, explore
from fedlora_sim.errors import InputError
from paper_figs import explorer, style

DPI = 110
RANKS = ("4x8,8x6,16x4", "2x4,4x4,16x4", "4x5,8x5,16x5,32x5", "8x16,64x2", "8x18")
EVERYBODY = "all"
WIDE = {"width": "31%", "min_width": "240px"}


class Explorer(ipywidgets.VBox):
    """Controls over a picture.

    Args:
        **start: settings to start with, by argument of `analysis.explorer.explore`.
    """

    def __init__(self, **start: Any) -> None:
        self.knobs: dict[str, Any] = _knobs(start)
        self.picture = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.message = ipywidgets.HTML()
        self.found: Exploration | None = None
        for knob in self.knobs.values():
            knob.observe(self._turned, names="value")
        self.update()
        row = {"flex_flow": "row wrap", "width": "100%"}
        panel = ipywidgets.Box(list(self.knobs.values()), layout=row)
        super().__init__([panel, self.message, self.picture])

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `explore`, as the knobs stand."""
        values = {name: knob.value for name, knob in self.knobs.items()}
        return {**values, "cohort_size": _cohort(values["cohort_size"])}

    def update(self) -> None:
        """Ask the closed forms, and draw; where they refuse, say why and leave the picture."""
        try:
            self.found = explore(**self.settings)
        except InputError as error:
            self.message.value = f"<b>{_plain(str(error))}</b>"
            return
        self.message.value = "<br>".join(_plain(reason) for reason in self.found.reasons)
        self.picture.value = png(self.found)

    def _turned(self, change: Any) -> None:
        self.update()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        """The widget, with its picture for pages without widgets."""
        bundle: dict[str, str] = dict(super()._repr_mimebundle_(**options) or {})
        told = "explorer" if self.found is None else self.found.sentence
        picture = base64.b64encode(self.picture.value).decode()
        return {**bundle, "image/png": picture, "text/plain": told}


def png(found: Exploration) -> bytes:
    """The picture of an exploration, as a file."""
    figure, _ = explorer.draw(found)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata=style.METADATA["png"])
    return file.getvalue()


def _knobs(start: dict[str, Any]) -> dict[str, Any]:
    """The controls by argument of `explore`."""
    unknown = sorted(start.keys() - _MAKERS.keys())
    if unknown:
        raise InputError(f"{unknown[0]}: expected one of {', '.join(_MAKERS)}")
    return {name: make(start.get(name, usual)) for name, (make, usual) in _MAKERS.items()}


def _slider(text: str, least: float, most: float, step: float) -> Callable[[Any], Any]:
    def make(value: float) -> Any:
        return ipywidgets.FloatSlider(
            value=value,
            min=least,
            max=most,
            step=step,
            description=text,
            continuous_update=False,
            readout_format=".2f",
            layout=WIDE,
        )

    return make


def _rules(value: str) -> Any:
    return ipywidgets.Dropdown(options=RULES, value=value, description="rule", layout=WIDE)


def _policies(value: str) -> Any:
    return ipywidgets.Dropdown(options=POLICIES, value=value, description="if nobody", layout=WIDE)


def _ranks(value: str) -> Any:
    return ipywidgets.Combobox(
        options=RANKS, value=value, description="ranks", continuous_update=False, layout=WIDE
    )


def _cohorts(value: int | str | None) -> Any:
    return ipywidgets.Text(
        value=EVERYBODY if value is None else str(value),
        description="cohort",
        continuous_update=False,
        layout=WIDE,
    )


def _cohort(text: str) -> Any:
    """Clients per round: a number where it is one, and what was written where it is not."""
    words = text.strip().lower()
    if words in ("", EVERYBODY):
        return None
    return int(words) if words.isdecimal() else text


def _plain(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


_MAKERS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "rule": (_rules, "fedavg"),
    "ranks": (_ranks, RANKS[0]),
    "cohort_size": (_cohorts, None),
    "gain_mean": (_slider("gain, mean", 0.5, 1.2, 0.01), 1.0),
    "gain_std": (_slider("gain, std", 0.0, 1.0, 0.01), 0.0),
    "drift_std": (_slider("drift, std", 0.0, 0.5, 0.01), 0.0),
    "local_time": (_slider("local time", 0.0, 3.0, 0.05), 0.0),
    "empty_partition": (_policies, "carry"),
}
