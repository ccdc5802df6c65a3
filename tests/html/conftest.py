"""Pages made once, and Debian's Chromium to read them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from page_cases import RECORDED, page_report, recorded_report

from fedlora_sim.storage import save_dataset
from paper_figs.html.render import render

PROGRAMS = ("chromium", "chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars"),
)


@pytest.fixture(scope="session")
def recorded_page() -> str:
    """Return the page of the recorded report."""
    return render(recorded_report(), RECORDED)


@pytest.fixture(scope="session")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a verification: a report, and energies of three rounds."""
    folder = tmp_path_factory.mktemp("verified")
    (folder / "report.json").write_text(json.dumps(page_report()))
    rounds, rules = np.arange(4), ["fedavg", "raflora"]
    factors = np.array([[1.0, 0.25], [1.0, 1.0]])
    energy = factors[:, None, :] ** rounds[None, :, None]
    data = xr.Dataset(
        {
            "energy": (("rule", "seed", "round", "direction"), np.stack([energy, energy], 1)),
            "predicted_energy": (("rule", "round", "direction"), energy),
        },
        coords={
            "rule": rules,
            "seed": [0, 1],
            "round": rounds,
            "direction": [1, 2],
            "partition": ("direction", [1, 2]),
        },
    )
    save_dataset(data, folder / "data" / "energies.nc")
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Debian's Chromium without a window; skipped where it is missing, but never in the gate."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        message = f"no {' and no '.join(missing)}: apt-get install chromium chromium-driver"
        if os.environ.get("FEDLORA_SIM_NEEDS_CHROMIUM") or os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
    yield driver
    driver.quit()
