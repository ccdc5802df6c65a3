"""The version, separate from the package so that every module can import it."""

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    import torch  # imported late: it takes seconds, and the version alone does not need it

    from fedlora_sim.randomness import DRAWS

    return {
        "fedlora_sim_version": __version__,
        "torch_version": str(torch.__version__),
        "draws_version": str(DRAWS),
    }
