"""A small report, and a parser of its page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from report_cases import claim_entry

RECORDED = Path(__file__).parents[2] / "results" / "recorded"
VOID = {"meta", "link", "br", "img", "input", "hr", "col", "mspace"}


def page_claim(name: str, **changes: Any) -> dict[str, Any]:
    """Return a claim of the record, with what its control measured."""
    control = {
        "description": "something wrong",
        "verdict": "refuted",
        "prediction": [0.5, 0.5],
        "measurement": [0.2511, 0.0401],
        "interval": [[0.2501, 0.2521], [0.0399, 0.0403]],
        "runs": 8000,
    }
    return claim_entry(name, **{"p_value": 3.21e-7, "negative_control": control, **changes})


def page_report(*claims: dict[str, Any]) -> dict[str, Any]:
    """Return a report on some claims; without any, on one of every verdict."""
    rounds = [f"round {t}, partition {h}" for t in (1, 2, 3) for h in (1, 2)]
    series = {
        "quantities": rounds,
        "prediction": [1.0] * 6,
        "measurement": [1.0, 0.99, 1.01, 1.0, 0.98, 1.02],
        "interval": [[0.95, 1.05]] * 6,
    }
    one = {
        "quantities": ["share"],
        "prediction": [0.9],
        "measurement": [0.5],
        "interval": [[0.4, 0.6]],
        "margin": "at least",
    }
    made = claims or (
        page_claim("staircase", p_holm=1e-7),
        page_claim("all-rounds", margin="±5%", p_holm=0.01, **series),
        page_claim("guess", kind="conjecture", verdict="refuted", theme="Other theme", **one),
        page_claim(
            "unclear",
            verdict="undecided",
            fidelity="matrix",
            reason="an interval still crosses the end of its margin",
            interval=[[None, 0.3], [0.03, 0.05]],
            p_holm=1.0,
        ),
    )
    kinds = [claim["kind"] for claim in made]
    return {
        "claims": list(made),
        "families": {
            kind: {"claims": 20, "run": kinds.count(kind), "error": 0.05}
            for kind in ("theorem", "conjecture")
        },
        "environment": {"seed": 7, "quick": False, "cores": 2, "numpy_version": "2.4.6"},
        "seconds": 90,
    }


def recorded_report() -> dict[str, Any]:
    return json.loads((RECORDED / "report.json").read_text())


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parent: Element | None = None
    children: list[Element | str] = field(default_factory=list)

    def walk(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    def find(self, tag: str) -> list[Element]:
        return [element for element in self.walk() if element.tag == tag]

    def text(self) -> str:
        parts = (c if isinstance(c, str) else c.text() for c in self.children)
        return " ".join("".join(parts).split())


class Page(HTMLParser):
    """A page as a tree; unclosed or wrongly nested elements are errors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = self.here = Element("document", {})
        self.feed(text)
        self.close()
        assert self.here is self.root, f"<{self.here.tag}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}>: an attribute twice"
        made = Element(tag, {name: value or "" for name, value in attrs}, self.here)
        self.here.children.append(made)
        if tag not in VOID:
            self.here = made

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.here.tag == tag, f"</{tag}> where <{self.here.tag}> is open"
        assert self.here.parent is not None
        self.here = self.here.parent

    def handle_data(self, data: str) -> None:
        self.here.children.append(data)

    def by_id(self, name: str) -> Element:
        (found,) = [e for e in self.root.walk() if e.attributes.get("id") == name]
        return found
