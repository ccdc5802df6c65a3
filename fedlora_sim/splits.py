"""Splits of a dataset over clients: IID, label, quantity and natural skew, and feature shift.

The splits (`*_split`) have these arguments and results in common:

    labels: class of each sample, shape (n,); `iid_split` and `quantity_split` use only the number.
    num_clients: number of clients K.
    rng: source of randomness.
    min_samples: minimum number of samples per client.

They return K sorted arrays of sample indices, int64, disjoint and together 0..n-1. They raise an
`InputError` if there are fewer than K * min_samples samples. If a split leaves a client with fewer
than `min_samples`, the splits by Dirichlet shares fill it up with random samples from the client
that has most at that moment, without repeating a draw, so that the call always ends and the other
clients' shares do not change; the other splits raise an `InputError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from fedlora_sim.errors import check_finite, check_positive, check_positive_int, expected
from fedlora_sim.randomness import stream
from fedlora_sim.tasks.prefix import PREFIX
from fedlora_sim.tasks.task import Examples

# Feature shift: noise on the inputs that grows with the client number


def feature_noise_levels(num_clients: int, level: float) -> NDArray[np.float64]:
    """Return the standard deviation of each client's input noise, `level * k / K` for k = 1..K.

    Args:
        num_clients: number of clients K.
        level: standard deviation for the last client, at least 0, in units of the inputs.

    Returns:
        The standard deviations, shape (K,).

    Raises:
        InputError: if an argument is invalid; names the argument, its value and what was expected.

    Reference:
        Li et al. 2022 (arXiv 2102.02079), Sec. IV-C, "Noise-based feature imbalance": party i's
        noise is Gau(sigma * i / N).
    """
    clients = check_positive_int("num_clients", num_clients)
    highest = check_finite("feature_noise", level, minimum=0.0)
    return highest * np.arange(1, clients + 1) / clients


def add_feature_noise(
    examples: Examples, samples: Sequence[NDArray[np.int64]], level: float, seed: int
) -> Examples:
    """Add Gaussian noise to each client's inputs, more for clients of higher number.

    A client's noise depends only on the seed, its number and its number of samples.

    Args:
        examples: the training data; every input continuous.
        samples: sample indices of each client, K arrays.
        level: standard deviation of the last client's noise; see `feature_noise_levels`.
        seed: seed of the noise.

    Returns:
        A copy with noise; the examples themselves if the level is 0.

    Raises:
        InputError: if the level is negative, an input is not floating point (tokens), or the first
            blocks were already computed from inputs without noise.
    """
    levels = feature_noise_levels(len(samples), level)
    if level == 0:
        return examples
    if PREFIX in examples.inputs:
        raise expected("feature_noise", level, "0 with cache_prefix, made of inputs without noise")
    for name, x in examples.inputs.items():
        if not x.is_floating_point():
            only = f"0: inputs[{name!r}] are {x.dtype}, and noise is for continuous inputs"
            raise expected("feature_noise", level, only)
    noisy = {name: x.clone() for name, x in examples.inputs.items()}
    for k, (own, deviation) in enumerate(zip(samples, levels, strict=True)):
        for name, x in noisy.items():
            rng = stream(seed, "feature noise", name, k)
            noise = deviation * rng.standard_normal((len(own), *x.shape[1:]))
            x[torch.from_numpy(own).to(x.device)] += torch.from_numpy(noise).to(x)
    return replace(examples, inputs=noisy)


# Table of a split: number of samples per client and class


def split_table(
    samples: Sequence[NDArray[np.int64]], classes: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64]:
    """Count each client's samples of each class.

    Args:
        samples: sample indices of each client, K arrays.
        classes: class of each sample, 0 to C - 1, shape (n,).
        num_classes: number of classes C.

    Returns:
        Counts, shape (K, C).

    Raises:
        InputError: if a class is out of range.
    """
    limit = check_positive_int("num_classes", num_classes)
    classes = np.asarray(classes)
    if classes.size and not 0 <= classes.min() <= classes.max() < limit:
        found = f"{classes.min()} to {classes.max()}"
        raise expected("classes", found, f"0 to {limit - 1}, of {limit} classes")
    return np.stack([np.bincount(classes[own], minlength=limit) for own in samples])


# Helpers of several splits: checks, Dirichlet shares, minimum sizes, order


def check_split(name: str, values: object, num_clients: int, min_samples: int) -> np.ndarray:
    """Refuse values that are not one per sample, and clients that cannot all get enough samples.

    Args:
        name: the caller's name of the values.
        values: one per sample, (n,).
        num_clients: number of clients K.
        min_samples: minimum number of samples per client.

    Returns:
        The values as an array.

    Raises:
        InputError: if an argument is invalid; names the argument, its value and what was expected.
    """
    found = np.asarray(values)
    if found.ndim != 1:
        raise expected(name, f"shape {found.shape}", "one per sample, shape (n,)")
    clients = check_positive_int("num_clients", num_clients)
    least = check_positive_int("min_samples", min_samples)
    if clients * least > len(found):
        raise expected("num_clients", clients, f"at most {len(found)} samples / {least} each")
    return found


def check_smallest(clients: list[np.ndarray], min_samples: int) -> None:
    """Refuse a finished split in which a client has fewer than `min_samples` samples.

    Raises:
        InputError: names the smallest client's size.
    """
    smallest = min(len(own) for own in clients)
    if smallest < min_samples:
        raise expected("min_samples", min_samples, f"at most {smallest}, the smallest client here")


def dirichlet_cuts(
    samples: np.ndarray, alpha: float, num_clients: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Cut a sequence of samples into K pieces in symmetric Dirichlet(alpha) proportions."""
    shares = _dirichlet(alpha, num_clients, rng)
    cuts = np.rint(np.cumsum(shares)[:-1] * len(samples)).astype(np.int64)
    return np.split(samples, cuts)


def fill_up(clients: list[np.ndarray], min_samples: int, rng: np.random.Generator) -> None:
    """Move random samples from the largest client to those below `min_samples`, in place."""
    for receiver in range(len(clients)):
        while len(clients[receiver]) < min_samples:
            giver = int(np.argmax([len(own) for own in clients]))
            position = rng.integers(len(clients[giver]))
            moved = clients[giver][position]
            clients[giver] = np.delete(clients[giver], position)
            clients[receiver] = np.append(clients[receiver], moved)


def in_order(clients: list[np.ndarray]) -> list[NDArray[np.int64]]:
    """Return each client's sample indices in ascending order, int64."""
    return [np.sort(own).astype(np.int64) for own in clients]


def _dirichlet(alpha: float, num_clients: int, rng: np.random.Generator) -> np.ndarray:
    """Return symmetric Dirichlet shares, shape (K,), for any positive alpha."""
    shares = rng.dirichlet(np.full(num_clients, alpha))
    if np.isfinite(shares).all() and shares.sum() > 0.5:
        return shares
    # All gamma draws underflowed: the limit alpha -> 0, one client takes everything.
    return np.eye(num_clients)[rng.integers(num_clients)]


# Label skew: each class in Dirichlet proportions


def dirichlet_split(
    labels: np.ndarray,
    num_clients: int,
    alpha: float,
    rng: np.random.Generator,
    *,
    min_samples: int = 1,
) -> list[np.ndarray]:
    """Distribute each class in Dirichlet(alpha) proportions: label skew and unequal sizes.

    For each class the shares of the K clients are drawn from a symmetric Dirichlet distribution;
    alpha is positive; alpha -> infinity is IID, alpha -> 0 gives each class to one client.

    Raises:
        InputError: if alpha is not positive.

    Reference:
        Yurochkin et al. 2019 (arXiv 1905.12022), Sec. 4; Li et al. 2022 (arXiv 2102.02079).
    """
    labels = check_split("labels", labels, num_clients, min_samples)
    check_positive("alpha", alpha)
    parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        for part, piece in zip(parts, dirichlet_cuts(own, alpha, num_clients, rng), strict=True):
            part.append(piece)
    clients = [np.concatenate(part) for part in parts]
    fill_up(clients, min_samples, rng)
    return in_order(clients)


# Pathological label skew: a few classes per client


def pathological_split(
    labels: np.ndarray,
    num_clients: int,
    classes_per_client: int,
    rng: np.random.Generator,
    *,
    min_samples: int = 1,
) -> list[np.ndarray]:
    """Give each client samples of exactly `classes_per_client` classes.

    Each client in turn takes the classes with the fewest owners so far, with random tie-breaking,
    so that the numbers of owners differ by at most one. Each class is then divided equally among
    its owners. (The shards of McMahan et al. can contain two classes; these cannot.)

    Raises:
        InputError: if c = `classes_per_client` exceeds the number of classes, if K * c is below it
            (a class would have no owner), or if a class has too few samples for its owners.

    Reference:
        McMahan et al. 2017 (arXiv 1602.05629), Sec. 3, "Pathological Non-IID".
    """
    labels = check_split("labels", labels, num_clients, min_samples)
    classes = np.unique(labels)
    per_client = check_positive_int("classes_per_client", classes_per_client)
    if per_client > len(classes) or per_client * num_clients < len(classes):
        least = -(-len(classes) // num_clients)
        bounds = f"{least} to {len(classes)}: {len(classes)} classes for {num_clients} clients"
        raise expected("classes_per_client", classes_per_client, bounds)
    owners = _deal_classes(len(classes), num_clients, per_client, rng)
    parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for label, clients in zip(classes, owners, strict=True):
        own = rng.permutation(np.flatnonzero(labels == label))
        if len(own) < len(clients):
            needed = f"at least {len(clients)} samples of class {label}, one per owner"
            raise expected("labels", f"{len(own)} of class {label}", needed)
        for client, piece in zip(clients, np.array_split(own, len(clients)), strict=True):
            parts[client].append(piece)
    split = [np.concatenate(part) for part in parts]
    check_smallest(split, min_samples)
    return in_order(split)


def _deal_classes(
    num_classes: int, num_clients: int, per_client: int, rng: np.random.Generator
) -> list[list[int]]:
    """Return the clients that own each class, in random order."""
    owners: list[list[int]] = [[] for _ in range(num_classes)]
    for client in range(num_clients):
        counts = np.array([len(clients) for clients in owners])
        # lexsort's last key comes first: fewest owners, then a random tie-break.
        for label in np.lexsort((rng.random(num_classes), counts))[:per_client]:
            owners[label].append(client)
    # array_split gives the spare samples to the earlier parts: do not always favor client 0.
    return [rng.permutation(clients).tolist() for clients in owners]


# Natural skew: all samples of a writer go to one client


def writer_split(
    groups: np.ndarray | None,
    num_clients: int,
    rng: np.random.Generator,
    *,
    min_samples: int = 1,
) -> list[np.ndarray]:
    """Give each group of samples to one client as a whole, with client sizes as equal as possible.

    The largest group goes first, each to the client with the fewest samples so far; ties are broken
    at random. With as many clients as groups, each client has one group. `groups` has the writer of
    each sample, any integers, shape (n,), and at least `num_clients` groups.

    Raises:
        InputError: if the data do not name the writers, if there are fewer groups than clients, or
            if a client is left with fewer than `min_samples` samples.

    Reference:
        Li et al. 2022 (arXiv 2102.02079), Sec. IV, "Real-world Feature Imbalance" (FEMNIST by
        writers); Graham 1969, SIAM J. Appl. Math. 17(2), for the order.
    """
    if groups is None:
        raise expected("groups", None, "the writer of every sample for split='by_writer'")
    groups = check_split("groups", groups, num_clients, min_samples)
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if num_clients > len(sizes):
        whole = f"at most {len(sizes)}, the number of groups: split='by_writer' parts none"
        raise expected("num_clients", num_clients, whole)
    owner, held = np.empty(len(sizes), dtype=np.int64), np.zeros(num_clients, dtype=np.int64)
    # lexsort's last key comes first; the other breaks ties at random.
    for group in np.lexsort((rng.random(len(sizes)), -sizes)):
        owner[group] = np.lexsort((rng.random(num_clients), held))[0]
        held[owner[group]] += sizes[group]
    split = [np.flatnonzero(owner[member] == client) for client in range(num_clients)]
    check_smallest(split, min_samples)
    return in_order(split)


# Quantity skew: clients of unequal size, each a random sample of the data


def quantity_split(
    labels: np.ndarray,
    num_clients: int,
    alpha: float,
    rng: np.random.Generator,
    *,
    min_samples: int = 1,
) -> list[np.ndarray]:
    """Draw client sizes from Dirichlet(alpha) and fill them with random samples.

    alpha is positive; alpha -> infinity gives equal sizes, alpha -> 0 gives all samples to one
    client.

    Raises:
        InputError: if alpha is not positive.

    Reference:
        Li et al. 2022 (arXiv 2102.02079), Sec. IV, "Quantity Skew".
    """
    labels = check_split("labels", labels, num_clients, min_samples)
    check_positive("alpha", alpha)
    clients = dirichlet_cuts(rng.permutation(len(labels)), alpha, num_clients, rng)
    fill_up(clients, min_samples, rng)
    return in_order(clients)


# IID: random samples in equal parts


def iid_split(
    labels: np.ndarray, num_clients: int, rng: np.random.Generator, *, min_samples: int = 1
) -> list[np.ndarray]:
    """Distribute the samples at random, in parts that differ by at most one sample."""
    labels = check_split("labels", labels, num_clients, min_samples)
    return in_order(np.array_split(rng.permutation(len(labels)), num_clients))
