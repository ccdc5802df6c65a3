"""Ways to hand a labelled data set out to clients: Dirichlet, pathological and IID."""

from __future__ import annotations

import numpy as np

from fedlora_sim.errors import check_finite, check_positive_int, expected


def iid_split(
    labels: np.ndarray, num_clients: int, rng: np.random.Generator, *, min_samples: int = 1
) -> list[np.ndarray]:
    """Hand the samples out at random, in parts that differ by at most one sample.

    Args:
        labels: class of every sample, shape (n,).
        num_clients: number of clients K.
        rng: source of randomness.
        min_samples: least number of samples per client.

    Returns:
        K sorted arrays of sample indices, int64, disjoint and together 0..n-1.

    Raises:
        ValueError: if there are fewer than K * min_samples samples.
    """
    labels = _check(labels, num_clients, min_samples)
    return _sorted(np.array_split(rng.permutation(len(labels)), num_clients))


def dirichlet_split(
    labels: np.ndarray,
    num_clients: int,
    alpha: float,
    rng: np.random.Generator,
    *,
    min_samples: int = 1,
) -> list[np.ndarray]:
    """Hand every class out in Dirichlet(alpha) proportions: label skew and unequal sizes.

    For each class the shares of the K clients are drawn from a symmetric Dirichlet distribution;
    alpha -> infinity is IID, alpha -> 0 gives each class to one client. A client left with fewer
    than `min_samples` then receives random samples from whichever client has most at that moment;
    no draw is repeated, so the call always ends and the other clients' shares stay as drawn.

    Args:
        labels: class of every sample, shape (n,).
        num_clients: number of clients K.
        alpha: concentration, positive.
        rng: source of randomness.
        min_samples: least number of samples per client.

    Returns:
        K sorted arrays of sample indices, int64, disjoint and together 0..n-1.

    Raises:
        ValueError: if alpha is not positive, or there are fewer than K * min_samples samples.

    Reference:
        Yurochkin et al. 2019 (arXiv 1905.12022), Sec. 4; Li et al. 2022 (arXiv 2102.02079).
    """
    labels = _check(labels, num_clients, min_samples)
    if check_finite("alpha", alpha) <= 0:
        raise expected("alpha", alpha, "a positive number")
    parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        shares = _dirichlet(alpha, num_clients, rng)
        cuts = np.rint(np.cumsum(shares)[:-1] * len(own)).astype(np.int64)
        for part, piece in zip(parts, np.split(own, cuts), strict=True):
            part.append(piece)
    clients = [np.concatenate(part) for part in parts]
    _fill_up(clients, min_samples, rng)
    return _sorted(clients)


def pathological_split(
    labels: np.ndarray,
    num_clients: int,
    classes_per_client: int,
    rng: np.random.Generator,
    *,
    min_samples: int = 1,
) -> list[np.ndarray]:
    """Give every client samples of exactly `classes_per_client` classes.

    Each client in turn takes the classes with the fewest owners so far, ties broken at random, so
    the numbers of owners differ by at most one; a class is then divided equally among its owners.
    (The shards of McMahan et al. can straddle two classes; these cannot.)

    Args:
        labels: class of every sample, shape (n,).
        num_clients: number of clients K.
        classes_per_client: number c of classes per client.
        rng: source of randomness.
        min_samples: least number of samples per client.

    Returns:
        K sorted arrays of sample indices, int64, disjoint and together 0..n-1.

    Raises:
        ValueError: if c exceeds the number of classes, if K * c is below it (a class would have no
            owner), or if a class has too few samples for its owners.

    Reference:
        McMahan et al. 2017 (arXiv 1602.05629), Sec. 3, "Pathological Non-IID".
    """
    labels = _check(labels, num_clients, min_samples)
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
    smallest = min(len(own) for own in split)
    if smallest < min_samples:
        raise expected("min_samples", min_samples, f"at most {smallest}, the smallest client here")
    return _sorted(split)


def _deal_classes(
    num_classes: int, num_clients: int, per_client: int, rng: np.random.Generator
) -> list[list[int]]:
    """The clients that own each class, in random order."""
    owners: list[list[int]] = [[] for _ in range(num_classes)]
    for client in range(num_clients):
        counts = np.array([len(clients) for clients in owners])
        # lexsort's last key comes first: fewest owners, then a random tie-break.
        for label in np.lexsort((rng.random(num_classes), counts))[:per_client]:
            owners[label].append(client)
    # array_split gives the earlier parts the spare samples: do not always favour client 0.
    return [rng.permutation(clients).tolist() for clients in owners]


def _dirichlet(alpha: float, num_clients: int, rng: np.random.Generator) -> np.ndarray:
    """Symmetric Dirichlet shares, shape (K,), for any positive alpha."""
    shares = rng.dirichlet(np.full(num_clients, alpha))
    if np.isfinite(shares).all() and shares.sum() > 0.5:
        return shares
    # All gamma draws underflowed: the limit alpha -> 0, one client takes the class.
    return np.eye(num_clients)[rng.integers(num_clients)]


def _fill_up(clients: list[np.ndarray], min_samples: int, rng: np.random.Generator) -> None:
    """Move random samples from the largest client to those below `min_samples`, in place."""
    for receiver in range(len(clients)):
        while len(clients[receiver]) < min_samples:
            giver = int(np.argmax([len(own) for own in clients]))
            position = rng.integers(len(clients[giver]))
            moved = clients[giver][position]
            clients[giver] = np.delete(clients[giver], position)
            clients[receiver] = np.append(clients[receiver], moved)


def _check(labels: np.ndarray, num_clients: int, min_samples: int) -> np.ndarray:
    """Refuse labels that are no row of numbers, and clients that cannot all be served."""
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise expected("labels", f"shape {labels.shape}", "one label per sample, shape (n,)")
    clients = check_positive_int("num_clients", num_clients)
    least = check_positive_int("min_samples", min_samples)
    if clients * least > len(labels):
        raise expected("num_clients", clients, f"at most {len(labels)} samples / {least} each")
    return labels


def _sorted(clients: list[np.ndarray]) -> list[np.ndarray]:
    return [np.sort(own).astype(np.int64) for own in clients]
