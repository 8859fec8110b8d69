"""A stand-in for a device without double precision, such as MPS: refuses what such a device would refuse."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LACKING = (torch.float64, torch.uint16)


class SinglePrecision(TorchFunctionMode):
    """While it is entered, every tensor counts as on the device until `.cpu()` is called on it.

    It raises `AssertionError` where a tensor of a type that the device lacks is moved to it or made on it.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, and look at what went in and came out."""
        kwargs = kwargs or {}
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        to_device = any(isinstance(value, torch.device) for value in (*args[1:], *kwargs.values()))
        if func is Tensor.to and to_device and args[0].dtype in _LACKING:
            raise AssertionError(f"{args[0].dtype} moved to the device")
        result = func(*args, **kwargs)
        if func is Tensor.cpu:
            result.is_off_device = True
        elif isinstance(result, Tensor) and result.dtype is torch.float64:
            on_device = [t for t in given if t.is_floating_point() and not hasattr(t, "is_off_device")]
            if on_device and all(t.dtype is not torch.float64 for t in on_device):
                raise AssertionError(f"{getattr(func, '__name__', func)} makes float64 on the device")
        return result
