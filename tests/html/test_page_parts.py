"""Parts of a page: formulas, numbers, intervals against their margins, and line charts."""

from __future__ import annotations

import math
import re
import struct
import zlib
from pathlib import Path

import matplotlib as mpl
import pytest
from page_cases import page_claim, page_report, recorded_report

from analysis.claims import CLAIMS
from analysis.claims.evidence import DERIVED
from analysis.claims.report import SYMBOLS
from paper_figs import style
from paper_figs.html.charts import Line, chart, interval_plot, number_html, p_html, region, sweep
from paper_figs.html.figures import pictures
from paper_figs.html.formulas import behind, derivation, typeset

# Identities of factors and comparisons on real data, which have no derivation.
WITHOUT = {
    "adam-identity",
    "independent-runs",
    *("canonical-gauge", "adam-floor", "digits-canonical-no-collapse", "digits-accuracy"),
    "digits-accuracy-two-high",
    *("ledger-closes", "ledger-dilution", "ledger-regrowth", "ledger-floor", "ledger-same-cohort"),
}


def test_formulas_of_the_claims_are_mathml_and_no_latex_is_left() -> None:
    found = 0
    for text in [SYMBOLS, *(text for claim in CLAIMS for text in claim.all_texts())]:
        html = typeset(text)
        assert html.count("<math ") == text.count("$") / 2, text
        assert not re.search(r"[$\\]", html), text
        found += html.count("<math ")
    assert found > 150


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("the adapter's share", "the adapter’s share"),
        ("a < b & <i>", "a &lt; b &amp; &lt;i&gt;"),
        ("costs $5", "costs $5"),
        (r"$\text{<script>}$, $W$", r"$\text{&lt;script&gt;}$, " + str(typeset("$W$"))),
        (r"$\href{javascript:alert(1)}{W}$", r"$\href{javascript:alert(1)}{W}$"),
    ],
)
def test_only_formulas_of_the_claims_are_typeset(text: str, html: str) -> None:
    assert typeset(text) == html


def test_derivations_belong_to_claims_that_there_are() -> None:
    ids = {claim.id for claim in CLAIMS}
    assert set(DERIVED) | WITHOUT == ids
    assert not set(DERIVED) & WITHOUT


@pytest.mark.parametrize("name", ["rates.staircase_rate", "cohorts.without_replacement"])
def test_a_derivation_is_typeset(name: str) -> None:
    found = derivation(name)
    assert found.equations
    assert all(e.startswith("<math") and 'display="block"' in e for e in found.equations)
    assert Path(found.module).is_file()


def test_a_long_sum_is_broken_into_lines() -> None:
    fourth = derivation("cohorts.without_replacement").equations[3]
    assert fourth.count("<mtr>") >= 3


@pytest.mark.slow
def test_every_claim_finds_its_equations() -> None:
    for claim_id in DERIVED:
        for item, equations in behind(claim_id):
            assert item.sentence, claim_id
            assert equations, claim_id
            assert set(equations) <= set(item.equations), claim_id
            assert not re.search(r"\\[a-zA-Z]", "".join(equations)), f"LaTeX left in {claim_id}"


@pytest.mark.parametrize(
    ("value", "html"),
    [
        (-0.1067, "−0.1067"),
        (0, "0"),
        (None, "not finite"),
        (1.966e-5, '<span class="n">1.966&thinsp;×&thinsp;10<sup>−5</sup></span>'),
        (1e-10, '<span class="n">10<sup>−10</sup></span>'),
    ],
)
def test_numbers_are_written_as_in_print(value: float | None, html: str) -> None:
    assert number_html(value) == html


def test_small_p_values_are_bounds() -> None:
    assert "&lt;&thinsp;" in p_html(1e-9)
    assert p_html(0.031) == "0.031"


@pytest.mark.parametrize(
    ("margin", "ends"),
    [
        ("±2%", (0.49, 0.51)),
        ("±0.1", (0.4, 0.6)),
        ("at least", (0.5, math.inf)),
        ("at most", (-math.inf, 0.5)),
    ],
)
def test_margins_are_read(margin: str, ends: tuple[float, float]) -> None:
    assert region(0.5, margin) == pytest.approx(ends)


@pytest.mark.parametrize(
    ("interval", "where"),
    [
        ((0.495, 0.505), "inside the margin"),
        ((0.495, 0.55), "across the end of the margin"),
        ((0.6, 0.7), "outside the margin"),
    ],
)
def test_an_interval_is_drawn_at_its_values(interval: tuple[float, float], where: str) -> None:
    drawn = interval_plot(0.5, sum(interval) / 2, interval, "±2%", "share <b>")
    assert f'{where}."' in drawn
    assert "share &lt;b&gt;: predicted 0.5 ±2%" in drawn
    band = re.search(r'class="band" x="([\d.]+)" y="3" width="([\d.]+)"', drawn)
    line = re.search(r'class="whisker" x1="([\d.]+)".*?x2="([\d.]+)"', drawn)
    start, width = map(float, band.groups())
    low, high = map(float, line.groups())
    assert (start <= low and high <= start + width) == where.startswith("inside")
    assert (low > start + width) == where.startswith("outside")
    assert 0 <= low <= high <= 220


def test_an_unbounded_interval_is_described_in_words() -> None:
    told = interval_plot(0.5, 0.5, (None, 0.6), "±2%", "share")
    assert "<svg" not in told
    assert "interval from not finite to 0.6" in told


def test_an_exact_prediction_of_zero_can_be_drawn() -> None:
    assert "<svg" in interval_plot(0.0, 0.0, (0.0, 0.0), "±2%", "difference")


def test_a_claim_on_many_rounds_is_drawn_over_them() -> None:
    claim = page_report()["claims"][1]
    drawn = sweep(claim)
    assert "measured against round, 1 to 3: partition 1 from 1 to 0.98" in drawn
    assert re.findall(r"<title>(.*?): measured", drawn) == [
        f"partition {h}, {t}" for h in (1, 2) for t in (1, 2, 3)
    ]


def test_a_claim_on_two_partitions_is_not() -> None:
    assert sweep(page_claim("two")) is None


@pytest.mark.slow
def test_charts_of_the_recorded_report_have_one_quantity() -> None:
    drawn = {c["id"]: sweep(c) for c in recorded_report()["claims"]}
    names = {name for name, drawing in drawn.items() if drawing}
    assert {"trajectory-fedavg", "review-settling-fractions", "breakdown-adam"} <= names
    assert "against angle of the basis, rad per round, 0.02" in drawn["breakdown-drift"]
    assert ">10⁻³</text>" in drawn["review-settling-fractions"], "over decades, a logarithmic axis"


def test_points_lie_where_their_values_are() -> None:
    drawn = chart([Line("one", [0, 1, 2], [1.0, 3.0, 2.0], [1.0, 3.0, 2.0])], "said", ("x", "y"))
    places = re.findall(r'<use href="#m\w+" x="([\d.]+)" y="([\d.]+)"', drawn)
    (x0, y0), (x1, y1), (x2, y2) = [(float(x), float(y)) for x, y in places]
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y0 - y2 == pytest.approx(y2 - y1), "up is more"


def test_a_chart_is_the_same_every_time_and_has_the_colors_and_fonts_of_the_page() -> None:
    line = Line("<b>$x$", [1, 2], [1.0, 1e-4], [1.0, 1e-4], [(0.9, 1.1), (9e-5, 2e-4)])
    drawn = chart([line], "said", ("x", "y"), floor=1e-5)
    with mpl.rc_context():
        style.apply()  # as after the figures of a verification
        assert drawn == chart([line], "said", ("x", "y"), floor=1e-5)
    assert not re.search(r"#[0-9a-f]{6}\b|font:|<style|<b>|xlink", drawn)
    assert "var(--line-0)" in drawn
    assert drawn.count("&lt;b&gt;$x$") == 1 + len(line.x), "the name, and the titles of the points"


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\0" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_figures_are_shown_with_measurements(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "rates.png").write_bytes(png(140, 70))
    (tmp_path / "figures" / "floors.png").write_bytes(b"no picture")
    (found,) = pictures(page_report(), tmp_path)
    assert (found.name, found.width, found.height) == ("rates", 100, 50)
    assert "staircase, supported: partition 2 0.2511 (predicted 0.25)" in found.text
