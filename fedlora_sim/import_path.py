"""Import this installation's packages where a working folder has packages of the same names.

`analysis` is a common name: a research repository with a folder `analysis/` hides this project's
package from every process that looks for modules there first, as `python -m` does and with
`PYTHONPATH=.`.
"""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGES = ("fedlora_sim", "analysis", "paper_figs", "fedlora_cli")


def prefer_own_packages() -> None:
    """Move folders that hide a package of this installation behind it on `sys.path`.

    Their other modules stay importable. Worker processes (joblib, multiprocessing, Dask on this
    machine) start with the path of their parent. Call this before any of the packages is imported.
    """
    root = Path(__file__).resolve().parents[1]
    hiding = [entry for entry in sys.path if _hides(Path(entry or ".").resolve(), root)]
    if not hiding:
        return
    others = [entry for entry in sys.path if entry not in hiding]
    # An editable installation need not be on the path at all.
    own = [] if any(Path(entry or ".").resolve() == root for entry in others) else [str(root)]
    sys.path[:] = [*others, *own, *hiding]


def _hides(folder: Path, root: Path) -> bool:
    """Return whether a folder of the path holds modules with the names of this installation's."""
    if folder == root:
        return False
    found = (folder / name for name in PACKAGES)
    return any(path.is_dir() or path.with_suffix(".py").is_file() for path in found)
