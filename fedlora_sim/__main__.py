"""`python -m fedlora_sim`: the command line, as `fedlora-sim`."""

from __future__ import annotations

from fedlora_sim.import_path import prefer_own_packages

if __name__ == "__main__":
    prefer_own_packages()
    from fedlora_cli.main import main

    main()
