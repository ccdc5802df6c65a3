"""Words of captions, from the data: no number of a setting is typed in by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from fedlora_sim import parse_ranks


def clients(data: xr.Dataset, name: str = "ranks") -> str:
    """How many clients there are, and of which ranks."""
    return clients_of(data.attrs[name])


def clients_of(ranks: Any) -> str:
    """The same of ranks, as text or one for each client."""
    own = list(parse_ranks(ranks) if isinstance(ranks, str) else np.atleast_1d(ranks).tolist())
    counts = {rank: own.count(rank) for rank in dict.fromkeys(own)}
    if len(counts) > 1 and len(set(counts.values())) == 1:
        each = next(iter(counts.values()))
        of = f"ranks {joined(counts)}, {'one' if each == 1 else each} of each"
    else:
        of = "ranks " + joined(f"{rank} (×{count})" for rank, count in counts.items())
    return f"{len(own)} clients of {of}"


def joined(words: Any) -> str:
    """`a, b and c`."""
    texts = [str(word) for word in words]
    return f"{', '.join(texts[:-1])} and {texts[-1]}" if len(texts) > 1 else "".join(texts)


def seeds(data: xr.Dataset, each: str = "") -> str:
    """How many runs there are (for each of what), and their seeds."""
    first, last = int(data.attrs["first_seed"]), int(data.attrs["last_seed"])
    if first == last:
        return f"one run{each}, seed {first}"
    return f"{int(data.attrs['runs']):,} runs{each}, seeds {first}–{last}"


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * float(share):g}%"


def cohort(data: xr.Dataset) -> str:
    """How many clients take part in a round."""
    size = data.attrs.get("cohort_size")
    return "all take part" if size in (None, "none") else f"{size} of them a round, at random"


def study(data: xr.Dataset) -> str:
    """A recorded study: its clients, rounds and seeds."""
    attrs = data.attrs
    return (
        f"{attrs['study_model']} fine-tuned on {attrs['study']}, {clients(data, 'study_ranks')}, "
        f"{attrs['study_cohort']} a round; {attrs['study_seeds']} seeds for each split of the "
        f"data ({attrs['study_first_seed']}–{attrs['study_last_seed']} in all), from the record"
    )


def configuration(ranks: str) -> str:
    """A rank configuration in words: `4x2,8x6` is rank 4 (×2) and 8 (×6)."""
    own = list(parse_ranks(ranks))
    return joined(f"{rank} (×{own.count(rank)})" for rank in dict.fromkeys(own))
