"""A stand-in for a CUDA device, for machines without one.

Its tensors say `cuda:0` and hold their data on the CPU. It refuses what CUDA refuses: operations on
tensors of different devices, and NumPy arrays of its tensors. It counts what costs time on a real
device: kernels, copies from the host, synchronizations (the host waits for a value) and calls of
solvers. Products of float32 are rounded to TF32 where torch's settings allow it.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda:0")
TRANSFERS = {"to", "cpu", "cuda", "copy_", "tensor", "as_tensor", "new_tensor"}
FROM_DATA = {"tensor", "as_tensor", "new_tensor"}
INDEXING = {"__getitem__", "__setitem__"}
QUESTIONS = {"_parse_to", "_has_compatible_shallow_copy_type"}
WAITS = {
    *("item", "tolist", "__bool__", "__float__", "__int__", "__index__"),
    *("nonzero", "argwhere", "masked_select", "unique", "equal", "allclose"),
}
CHECKED = {  # the solver's error code is read on the host
    *("linalg_svd", "linalg_svdvals", "linalg_eigh", "linalg_eigvalsh", "linalg_cholesky"),
    *("linalg_solve", "linalg_inv"),
}
SOLVERS = CHECKED | {"linalg_qr", "linalg_cholesky_ex"}
VIEWS = {
    *("view", "_unsafe_view", "expand", "slice", "select", "transpose", "t", "permute", "alias"),
    *("unsqueeze", "squeeze", "as_strided", "detach", "diagonal", "split", "split_with_sizes"),
    *("unbind", "_reshape_alias", "lift_fresh", "unfold", "view_as_real"),
    *("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"),
}
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}
TF32_BITS = 13  # of the 23 bits of a float32 fraction that TF32 does not have


class OnDevice(torch.Tensor):
    """A tensor of the stand-in."""

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        assert StandIn.active is not None, "a tensor of the stand-in outside of it"
        return StandIn.active.call(func, args, kwargs or {})

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy


class _Kernels(TorchDispatchMode):
    """Counts the operations that launch a kernel, and rounds the factors of products."""

    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name not in VIEWS:
            self.counts["kernels"] += 1
        if name in PRODUCTS and torch.backends.cuda.matmul.fp32_precision == "tf32":
            args = tree_map(_rounded, args)
        return func(*args, **(kwargs or {}))


def _rounded(x):
    """Return a float32 matrix rounded to TF32, to nearest."""
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
        return x
    half, mask = 1 << (TF32_BITS - 1), -1 << TF32_BITS
    return ((x.contiguous().view(torch.int32) + half) & mask).view(torch.float32)


class StandIn(TorchFunctionMode):
    """The device: a context in which `cuda` is available.

    `counts` holds kernels, copies (from the host), waits (synchronizations) and solves; `solved`
    the shapes that each solver was called with.
    """

    active = None

    def __init__(self):
        super().__init__()
        self.counts, self.solved = Counter(), []
        self._patches = ExitStack()

    def __enter__(self):
        cuda = {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "empty_cache": lambda: None,
            "mem_get_info": lambda *_: (2**33, 2**34),
            "synchronize": lambda *_: None,
        }
        self._patches.enter_context(patch.multiple(torch.cuda, **cuda))
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._patches.callback(
            torch.__future__.set_overwrite_module_params_on_conversion, overwrite
        )
        StandIn.active = self
        return super().__enter__()

    def __exit__(self, *error):
        StandIn.active = None
        self._patches.close()
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.call(func, args, kwargs or {})

    def call(self, func, args, kwargs):
        name = getattr(func, "__name__", "")
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        here = [x for x in tensors if isinstance(x, OnDevice)]
        host = [x for x in tensors if not isinstance(x, OnDevice) and x.dim() > 0]
        placed = any(map(_is_device, (*args, *kwargs.values())))
        if func is torch.device or name in QUESTIONS or not (here or placed):
            return self._run(func, args, kwargs)
        if here and host and name not in TRANSFERS | INDEXING:
            shapes = [tuple(x.shape) for x in host]
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! ({name}; on the CPU: {shapes})"
            )
        if name in INDEXING and not isinstance(args[0], OnDevice):
            raise RuntimeError("indices should be on the CPU, like the indexed tensor")
        args, kwargs = tree_map(_on_host, (tuple(args), dict(kwargs)))
        self._count(name, args, placed)
        with _Kernels(self.counts):
            found = self._run(func, args, kwargs)
        leaves = name == "cpu" or (name == "to" and not placed and _goes_to_host(args[1:], kwargs))
        if name == "copy_":
            leaves = not isinstance(args[0], OnDevice)
        if leaves:
            self.counts["waits"] += 1
            return tree_map(_plain, found)
        return tree_map(_wrapped, found)

    @staticmethod
    def _run(func, args, kwargs):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    def _count(self, name, args, placed):
        first = args[0] if args else None
        own = isinstance(first, OnDevice)
        if (name in FROM_DATA or name == "to") and placed and not own:
            self.counts["copies"] += 1
        if name == "copy_" and own and not isinstance(args[1], OnDevice):
            self.counts["copies"] += 1
        if name in INDEXING:
            index = [x for x in tree_flatten(args[1:])[0] if isinstance(x, torch.Tensor)]
            host = [x for x in index if not isinstance(x, OnDevice)]
            masks = [x for x in index if isinstance(x, OnDevice) and x.dtype == torch.bool]
            self.counts.update({"copies": len(host)} if host else {})
            self.counts.update({"waits": 1} if masks else {})
        if name in WAITS | CHECKED:
            self.counts["waits"] += 1
        if name in SOLVERS:
            self.counts["solves"] += 1
            self.solved.append((name, tuple(first.shape)))


def _is_device(value):
    return isinstance(value, str | torch.device) and str(value).startswith("cuda")


def _on_host(value):
    return torch.device("cpu") if _is_device(value) else value


def _goes_to_host(args, kwargs):
    others = [x for x in args if isinstance(x, torch.Tensor)]
    if others:  # x.to(other)
        return not isinstance(others[0], OnDevice)
    devices = [x for x in (*args, kwargs.get("device")) if isinstance(x, str | torch.device)]
    return bool(devices)


def _wrapped(x):
    if not isinstance(x, torch.Tensor) or isinstance(x, OnDevice):
        return x
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(OnDevice)


def _plain(x):
    if not isinstance(x, torch.Tensor):
        return x
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(torch.Tensor).clone()
