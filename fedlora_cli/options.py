"""Options that several commands read: seeds, and values of scenario fields."""

from __future__ import annotations

import tomllib
from pathlib import Path

from fedlora_sim.errors import check_positive_int, expected


def parse_assignment(text: str) -> tuple[str, object]:
    """A scenario field and its value, from `field=value`; the value as TOML, else as plain text.

    Raises:
        ValueError: if there is no `=`.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise expected("--set", text, "field=value, e.g. gain_std=0.1")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def check_folder(argument: str, value: Path, folder: Path) -> None:
    """Refuse a folder that cannot be made because a file stands in its way.

    Raises:
        ValueError: naming the argument and the value that was given for it.
    """
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise expected(argument, str(value), f"a place to write to ({path} is a file)")


def parse_pair(argument: str, text: str, mean: float | None = None) -> tuple[float, float]:
    """Mean and standard deviation, from `mean,std`, or from `std` alone where a mean is given.

    Raises:
        ValueError: naming the argument.
    """
    try:
        *before, std = (float(number) for number in text.split(","))
        (first,) = before if before or mean is None else [mean]
    except ValueError:
        form = "mean,std" if mean is None else "std or mean,std"
        raise expected(argument, text, f"{form}, e.g. 0.98,0.1") from None
    return first, std


def parse_samples(argument: str, text: str) -> tuple[float, ...]:
    """Sample counts per client, from text such as `100x8,50x6`: 100 samples, 8 clients; ...

    Raises:
        ValueError: naming the argument.
    """
    counts: list[float] = []
    for part in text.replace(" ", "").split(","):
        count, _, clients = part.partition("x")
        try:
            number = check_positive_int(argument, clients or "1")
            counts += [float(count)] * number
        except ValueError:
            raise expected(argument, text, "counts like '120,80' or '100x8,50x6'") from None
    return tuple(counts)
