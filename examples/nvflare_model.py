"""The server's model of `nvflare_job.py`: NVFlare asks it for the initial global adapter."""

from __future__ import annotations

from typing import Any

import torch
from toy_federation import initial_adapter


class GlobalAdapter(torch.nn.Module):
    """The initial adapter as a module whose state is a PEFT state dict."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Return the adapter under PEFT's keys."""
        return initial_adapter()
