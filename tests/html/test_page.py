"""The report's page as a file: complete, well-formed, self-contained and readable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from page_cases import Element, Page, page_claim, page_report, recorded_report
from promises import Promise

from fedlora_cli.verify import verify
from paper_figs.html import page as views
from paper_figs.html.page import as_report
from paper_figs.html.render import render

LARGEST = 3_000_000  # bytes
AA = 4.5  # contrast of text, WCAG 2.2
STYLE = Path(views.__file__).parent / "templates" / "report.css"


@pytest.fixture(scope="module")
def page(verified: Path) -> Page:
    return Page(render(page_report(), verified))


@pytest.fixture(scope="module")
def recorded(recorded_page: str) -> Page:
    return Page(recorded_page)


def claims_of(page: Page) -> list[Element]:
    return [e for e in page.root.find("tbody") if "claim" in e.attributes.get("class", "").split()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["page", "recorded"])
def test_it_is_well_formed_and_every_reference_leads_somewhere(
    name: str, request: pytest.FixtureRequest
) -> None:
    page = request.getfixturevalue(name)
    ids = [e.attributes["id"] for e in page.root.walk() if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    links = [e.attributes["href"] for e in page.root.find("a")]
    assert {link[1:] for link in links} <= set(ids)
    for attribute in ("for", "aria-labelledby"):
        named = [e.attributes[attribute] for e in page.root.walk() if attribute in e.attributes]
        assert named
        assert set(named) <= set(ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["page", "recorded"])
def test_nothing_is_loaded_from_elsewhere(name: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(name)
    for element in page.root.walk():
        for attribute in ("src", "href", "srcset", "data", "action"):
            value = element.attributes.get(attribute, "#")
            assert value.startswith(("#", "data:")), (element.tag, attribute)
    for element in (*page.root.find("style"), *page.root.find("script")):
        assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp", element.text())


@pytest.mark.parametrize("name", ["page", "recorded"])
def test_every_drawing_has_a_text_alternative(name: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(name)
    drawings = page.root.find("svg")
    assert drawings
    for drawing in drawings:
        assert drawing.attributes["role"] == "img"
        assert len(drawing.attributes["aria-label"]) > 30
    for image in page.root.find("img"):
        assert re.search(r"\d", image.attributes["alt"]), "says what is seen, in numbers"


def test_the_recorded_report_is_all_there_and_small(recorded_page: str, recorded: Page) -> None:
    report = recorded_report()
    seed = report["environment"]["seed"]
    assert len(recorded_page.encode()) < LARGEST
    shown = claims_of(recorded)
    assert [e.attributes["data-name"] for e in shown] == [c["id"] for c in report["claims"]]
    for element, claim in zip(shown, report["claims"], strict=True):
        text = element.text()
        for part in (claim["verdict"], claim["kind"], claim["fidelity"], f"{claim['runs']:,} runs"):
            assert part in text
        assert f"fedlora-sim verify --seed {seed} --claim {claim['id']}" in text
        rows = element.find("details")[0].find("tbody")[0].find("tr")
        assert len(rows) == len(claim["quantities"])
    assert len(recorded.root.find("img")) >= 6


def test_formulas_are_mathml_with_their_derivations(recorded: Page) -> None:
    claim = recorded.by_id("claim-flow-floor-fedavg")
    (statement,) = [e for e in claim.walk() if e.attributes.get("class") == "statement"]
    assert len(statement.find("math")) == 1
    assert "$" not in claim.text()
    assert claim.find("mfrac")
    assert "#derivation-flow.floor" in {a.attributes["href"] for a in claim.find("a")}
    assert recorded.by_id("derivation-flow.floor").find("math")


def test_headings_tables_and_landmarks_are_in_order(recorded: Page) -> None:
    for tag in ("main", "h1"):
        assert len(recorded.root.find(tag)) == 1
    levels = [int(e.tag[1]) for e in recorded.root.walk() if re.fullmatch("h[1-6]", e.tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for table in recorded.root.find("table"):
        assert table.find("caption")[0].text()
        assert all("scope" in head.attributes for head in table.find("th"))
    (status,) = [e for e in recorded.root.walk() if e.attributes.get("role") == "status"]
    assert status.attributes["aria-live"] == "polite"


def test_verdicts_are_words_and_marks(page: Page) -> None:
    texts = {e.attributes["data-name"]: e.text() for e in claims_of(page)}
    assert "✓ supported" in texts["staircase"]
    assert "✗ refuted" in texts["guess"]
    assert "? undecided" in texts["unclear"]
    assert "Undecided: an interval still crosses the end of its margin." in texts["unclear"]
    assert "not finite" in texts["unclear"]


def test_a_control_that_is_not_refuted_stands_out() -> None:
    vacuous = {"description": "nothing", "verdict": "supported"}
    report = page_report(page_claim("vacuous", verdict="undecided", negative_control=vacuous))
    text = Page(render(report, Path("nowhere"))).root.text()
    assert "! supported, not refuted" in text
    assert "1 of 1 negative controls not refuted" in text


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ([page_claim("a")], "The theorem is supported; its negative control is refuted, as it m"),
        ([page_claim("a"), page_claim("b")], "All 2 theorems are supported; all 2 negative cont"),
        (
            [page_claim("a"), page_claim("b", verdict="refuted")],
            "Of 2 theorems 1 is supported and 1 refuted; all 2",
        ),
        (
            [page_claim("a", kind="conjecture", verdict="refuted")],
            "The conjecture is refuted; its",
        ),
    ],
)
def test_the_headline_states_the_verdicts(claims: list[dict], expected: str) -> None:
    assert views.headline(page_report(*claims)).startswith(expected)


INJECTIONS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style></title></textarea></template></noscript><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    '" autofocus onfocus="alert(1)" x="',
    "<!-- alert(1)",
    "]]><script>alert(1)</script>",
    "<a href=javascript:alert(1)>x</a>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "$</math><script>alert(1)</script>$",
    r"$\text{<script>alert(1)</script>}$ $\href{javascript:alert(1)}{x}$",
    "{{ 7 * 7 }}{% raise %}${alert(1)}",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
)


def page_with(text: str) -> Page:
    """Return a page on a claim with this text in every field that may hold any text."""
    changes = dict.fromkeys(("statement", "source", "assumptions", "statistic", "theme"), text)
    changes |= {"verdict": "undecided", "reason": text}
    controls = {
        name: {**page_claim("a")[name], "description": text}
        for name in ("negative_control", "near_control")
    }
    report = page_report(page_claim("evil", quantities=[text, text], **changes, **controls))
    report["environment"] |= dict.fromkeys(("platform", "processor", "command"), text)
    return Page(render(report, Path("nowhere")))


def structure(element: Element) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield all elements with the names of their attributes."""
    yield element.tag, tuple(element.attributes)
    for child in element.children:
        if isinstance(child, Element):
            yield from structure(child)


@pytest.mark.slow
@pytest.mark.parametrize("text", INJECTIONS)
def test_text_of_a_report_is_never_read_as_html(text: str, promise: Promise) -> None:
    count = promise("No text of a report is read as HTML by its page.", "injected texts")
    page, plain = page_with(text), page_with("plain text")
    assert list(structure(page.root)) == list(structure(plain.root))
    shown = " ".join(text.split())
    assert page.root.text().count(shown) == plain.root.text().count("plain text") >= 8
    count(page.root.text().count(shown))


def test_energies_are_drawn_with_their_numbers(page: Page) -> None:
    panels = [e for e in page.root.find("svg") if "data-left" in e.attributes]
    assert len(panels) == 2
    assert (
        "partition 2 goes from 1 to 0.01562, predicted 0.01562"
        in panels[0].attributes["aria-label"]
    )
    (table,) = [
        t for t in page.by_id("trajectories").find("table") if "numbers" in str(t.attributes)
    ]
    assert [cell.text() for cell in table.find("tr")[-1].find("td")] == ["1", "0.01562", "1", "1"]


def test_without_data_and_figures_the_claims_are_left(tmp_path: Path) -> None:
    page = Page(render(page_report(), tmp_path))
    ids = {e.attributes.get("id") for e in page.root.walk()}
    assert "claims" in ids
    assert not ids & {"trajectories", "figures", "digits"}


def test_a_study_is_shown_too() -> None:
    claim = page_claim("collapse", quantity="share", prediction=-1.0, margin="at most")
    claim |= {"measurement": -2.0, "interval": [-2.5, -1.5], "replicates": 3}
    study = {
        "study": {"name": "small", "about": "A small study."},
        "claims": [claim],
        "left_out": [{"id": "accuracy", "reason": "too few seeds"}],
        "command": "fedlora-sim study small",
        "environment": {"numpy_version": "2.4.6"},
    }
    text = Page(render(as_report(study), Path("nowhere"), "study.json")).root.text()
    for part in ("Study: small", "A small study.", "−2 [−2.5, −1.5]", "fedlora-sim study small"):
        assert part in text
    assert "Left out, accuracy: too few seeds" in text


def test_a_claim_is_repeated_by_a_command_that_verify_knows() -> None:
    report = page_report()
    report["environment"]["quick"] = True
    words = views.command(report, report["claims"][0]).split()
    assert words == ["fedlora-sim", "verify", "--seed", "7", "--quick", "--claim", "staircase"]
    assert {"seed", "quick", "claim"} <= set(verify.__annotations__)


def themes_of_style() -> dict[str, dict[str, str]]:
    """Return the colors by name of the light and the dark theme."""
    text = STYLE.read_text()
    found = {}
    for name, start in (("light", ":root {"), ("dark", ':root[data-theme="dark"] {')):
        block = text.split(start, 1)[1].split("}", 1)[0]
        found[name] = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    return found


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_enough_contrast(theme: str) -> None:
    colors = themes_of_style()[theme]
    pairs = [(ink, ground) for ink in ("ink", "soft", "accent") for ground in ("paper", "raised")]
    pairs += [(f"line-{i}", ground) for i in range(4) for ground in ("paper", "raised")]
    pairs += [("accent", "tint"), ("ink", "tint"), ("paper", "ink")]
    for ink, ground in pairs:
        low, high = sorted((luminance(colors[ink]), luminance(colors[ground])))
        assert (high + 0.05) / (low + 0.05) >= AA, (ink, ground)


def test_the_dark_theme_is_one_whether_chosen_or_the_systems() -> None:
    blocks = re.findall(r"\{\s*(--paper: #15181b.*?)\}", STYLE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    assert blocks[0].split() == blocks[1].split()
