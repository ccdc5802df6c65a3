"""The report's page in Debian's Chromium, opened from a file."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from page_cases import page_report, recorded_report

from paper_figs.html.render import render

pytestmark = pytest.mark.slow  # a browser starts once, in seconds

WIDTHS = [1280, 390]


class Reader:
    """A page in the browser, queried by scripts."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def ask(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(f"return {script}", *arguments)

    def size(self, width: int, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, theme: str) -> None:
        wish = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wish})

    def shown(self) -> list[str]:
        """Return names of the claims that are visible, in their order on the page."""
        return self.ask(
            "[...document.querySelectorAll('tbody.claim')].filter((c) => c.offsetHeight > 0)"
            ".map((c) => c.dataset.name)"
        )

    def status(self) -> str:
        return self.ask("document.getElementById('shown').textContent")

    def choose(self, name: str, value: str) -> None:
        """Set a control's value and send the event, as mouse or keyboard would."""
        self.ask(
            "((c) => { c.value = arguments[1];"
            "c.dispatchEvent(new Event('input', {bubbles: true})); })"
            "(document.getElementById(arguments[0]))",
            name,
            value,
        )

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()

    def press(self, *keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    def overflow(self) -> int:
        """Return by how much the page is wider than the window."""
        return self.ask(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )


@pytest.fixture
def open_page(browser: Any, tmp_path: Path, verified: Path) -> Callable[..., Reader]:
    """Return a function that opens a page from a file in a window of some width."""

    def opened(text: str | None = None, width: int = 1280, hash_: str = "") -> Reader:
        path = tmp_path / "report.html"
        path.write_text(render(page_report(), verified) if text is None else text)
        reader = Reader(browser)
        reader.size(width)
        reader.prefer("light")
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get(f"{path.as_uri()}{hash_}")
        return reader

    return opened


@pytest.mark.parametrize("width", WIDTHS)
def test_the_recorded_report_opens_whole(
    open_page: Callable[..., Reader], recorded_page: str, width: int
) -> None:
    page = open_page(recorded_page, width)
    assert page.ask("location.protocol") == "file:"
    assert page.ask("document.documentElement.clientWidth") == width
    claims = len(recorded_report()["claims"])
    assert len(page.shown()) == claims > 80
    assert page.overflow() <= 0
    page.click("#open")
    assert page.ask("document.querySelectorAll('tbody.claim details[open]').length") == claims
    page.ask("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.overflow() <= 0
    assert page.driver.get_log("browser") == []
    loaded = page.ask("performance.getEntriesByType('resource').map((e) => e.name.slice(0, 5))")
    assert set(loaded) <= {"data:"}
    assert page.ask("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")


def test_every_drawing_has_a_name_for_screen_readers(
    open_page: Callable[..., Reader], recorded_page: str
) -> None:
    page = open_page(recorded_page)
    page.ask("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    images = [n for n in nodes if n.get("role", {}).get("value") in ("image", "img")]
    assert len(images) > 300
    assert all(len(node["name"]["value"]) > 30 for node in images)
    controls = {"button", "combobox", "searchbox", "slider", "link"}
    named = [n for n in nodes if n.get("role", {}).get("value") in controls]
    assert named
    assert all(node["name"]["value"] for node in named)


def test_filters_show_matches_and_their_number(open_page: Callable[..., Reader]) -> None:
    page = open_page()
    assert page.status() == "4 claims"
    page.choose("verdict", "refuted")
    assert page.shown() == ["guess"]
    assert page.status() == "1 of 4 claims shown"
    page.choose("verdict", "")
    page.choose("text", "ROUND partition")
    assert page.shown() == ["all-rounds"]
    page.choose("text", "no such word")
    assert page.shown() == []
    page.click("#clear-too")
    assert page.status() == "4 claims"
    for name, value, expected in [
        ("kind", "conjecture", ["guess"]),
        ("theme", "Other theme", ["guess"]),
        ("fidelity", "matrix", ["unclear"]),
    ]:
        page.choose(name, value)
        assert page.shown() == expected
        page.click("#clear")
        assert len(page.shown()) == 4


def test_columns_sort_up_down_and_back(open_page: Callable[..., Reader]) -> None:
    page = open_page()
    start, head = page.shown(), "th[data-sort=p]"
    by_p = ["staircase", "guess", "all-rounds", "unclear"]
    for order, said in [(by_p, "ascending"), (by_p[::-1], "descending"), (start, None)]:
        page.click(f"{head} button")
        assert page.shown() == order
        assert page.ask("document.querySelector(arguments[0]).ariaSort", head) == said
    page.choose("sort", "name")
    assert page.shown() == sorted(start)
    page.click("#direction")
    assert page.shown() == sorted(start)[::-1]
    assert page.ask("document.getElementById('direction').ariaPressed") == "true"


def test_the_address_keeps_the_choice(open_page: Callable[..., Reader]) -> None:
    page = open_page()
    page.choose("kind", "theorem")
    page.choose("text", "states")
    page.choose("sort", "name")
    page.click("#direction")
    address, shown = page.ask("location.hash"), page.shown()
    assert shown == ["unclear", "staircase", "all-rounds"]
    again = open_page(hash_=address)
    assert again.shown() == shown
    assert again.ask("document.getElementById('kind').value") == "theorem"
    assert again.status() == "3 of 4 claims shown"


@pytest.mark.parametrize("hash_", ["#verdict=nonsense&x=y", "#claim-nobody", "#%", "#=&="])
def test_a_wrong_address_shows_everything(open_page: Callable[..., Reader], hash_: str) -> None:
    page = open_page(hash_=hash_)
    assert len(page.shown()) == 4
    assert page.driver.get_log("browser") == []


def test_a_link_to_a_claim_opens_it(open_page: Callable[..., Reader]) -> None:
    page = open_page(hash_="#claim-guess")
    assert page.ask("document.querySelector('#claim-guess details').open")
    top = page.ask("document.getElementById('claim-guess').getBoundingClientRect().top")
    assert 0 <= top < 100, "it is what one sees first"
    page.choose("verdict", "supported")
    assert "unclear" not in page.shown()
    # a link within the page, to a claim that the filter hides
    page.ask(
        "document.querySelector('#claim-staircase .id').setAttribute('href', '#claim-unclear')"
    )
    page.click("#claim-staircase .id")
    assert "unclear" in page.shown()
    assert page.ask("document.querySelector('#claim-unclear details').open")


def test_the_theme_follows_the_system_until_chosen(open_page: Callable[..., Reader]) -> None:
    page = open_page()
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.ask(ground)
    page.prefer("dark")
    dark = page.ask(ground)
    assert dark != light
    for _ in range(4):  # on a busy machine Chromium loses about one of thirty writes
        page.click("#toggle")
        assert page.ask(ground) == light
        page.driver.refresh()
        if page.ask(ground) == light:
            break
    assert page.ask(ground) == light, "the choice is kept"
    assert page.ask("document.getElementById('toggle').textContent") == "Dark theme"
    page.click("#toggle")
    page.prefer("light")
    assert page.ask(ground) == dark
    page.ask("localStorage.clear()")


def test_the_keyboard_reaches_every_control_in_order(open_page: Callable[..., Reader]) -> None:
    from selenium.webdriver.common.keys import Keys

    page = open_page()
    reached = []
    page.driver.find_element("tag name", "body").send_keys(Keys.TAB)
    for _ in range(40):
        reached.append(page.ask("((e) => e.id ? `#${e.id}` : e.className)(document.activeElement)"))
        page.press(Keys.TAB)
    order = ["#toggle", "#round", "#text", "#theme", "#kind", "#verdict", "#fidelity", "#sort"]
    order += ["#direction", "#clear", "#open"]
    assert reached[0] == "skip"
    assert [name for name in dict.fromkeys(reached) if name in order] == order
    assert "sort" in reached[reached.index("#open") :], "headings that sort"


def test_the_round_moves_all_panels_and_numbers(open_page: Callable[..., Reader]) -> None:
    from selenium.webdriver.common.keys import Keys

    page = open_page()
    read = "document.querySelector('#readout [data-of=measured][data-at=\"0,1\"]').textContent"
    cross = "[...document.querySelectorAll('.cross')].map((c) => c.getAttribute('x1'))"
    assert page.ask(read) == "0.01562"
    before = page.ask(cross)
    page.driver.find_element("id", "round").send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert page.ask(read) == "0.25"
    assert page.ask("document.getElementById('readout-round').textContent") == "1"
    assert page.ask("document.getElementById('round').ariaValueText") == "round 1"
    after = page.ask(cross)
    assert len(set(after)) == 1
    assert float(after[0]) < float(before[0])


def test_without_scripts_everything_can_be_read(open_page: Callable[..., Reader]) -> None:
    driver = open_page().driver
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.refresh()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    page = Reader(driver)
    assert len(page.shown()) == 4
    assert page.ask("document.getElementById('controls').offsetHeight") == 0
    page.click("#claim-guess summary")
    assert page.ask("document.querySelector('#claim-guess .facts').offsetHeight") > 0


def test_paper_shows_all_of_it(open_page: Callable[..., Reader]) -> None:
    page = open_page()
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert page.ask("document.getElementById('controls').offsetHeight") == 0
        assert page.ask("[...document.querySelectorAll('.facts')].every((f) => f.offsetHeight > 0)")
        assert page.ask("document.querySelector('#claims-table thead').innerText").count("Verdict")
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    sheet = page.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert base64.b64decode(sheet["data"]).startswith(b"%PDF")
    assert not page.ask("document.querySelector('tbody.claim details').open"), "folded again"
