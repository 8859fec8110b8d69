"""Pick the devices a network runs on, and the arithmetic they are good at."""

import contextlib
import ctypes
import sys
from typing import Any

import torch

from dsgen.errors import InvalidValueError

PRECISIONS = ("auto", "float32", "bf16", "fp16")
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """Return the device meant by auto, cpu, cuda, cuda:N or mps; auto is the best there is."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    present = ["cpu"] + [f"cuda:{n}" for n in range(torch.cuda.device_count() if cuda else 0)] + ["mps"] * mps
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    if name not in present and not (name == "cuda" and cuda):
        raise InvalidValueError(
            "--device", f"got {name!r}, this machine has {', '.join(present)}", "take one of these or auto"
        )
    return torch.device(name)


def pick_devices(names: str = "auto") -> list[torch.device]:
    """Return the devices meant by names with commas between, such as cuda:0,cuda:1."""
    return [pick_device(name.strip()) for name in names.split(",")]


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the type of autocast that a precision means on a device, None for plain float32.

    "auto" is bfloat16 where the device multiplies matrices of it: on CUDA (float16 where it cannot), and on processors
    with AMX, where it is several times faster than float32. On other processors it would be several times slower.
    """
    if precision == "auto" and device.type == "cuda":
        precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if precision == "auto" and device.type == "cpu" and _has_amx():
        precision = "bf16"
    return _HALVES.get(precision)


def _has_amx() -> bool:
    """Say whether the processor multiplies tiles of bfloat16 (Intel, from Sapphire Rapids on)."""
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.11 does not say
    return bool(capabilities.get("amx_bf16"))


def tune_for_training() -> None:
    """Make training on a CPU faster for this whole process, of which nothing else should be expected.

    It keeps the memory it frees, and denormal numbers, with which processors are slow, count as 0. Threads begun
    before keep the old ways.
    """
    keep_freed_memory()
    torch.set_flush_denormal(True)


def keep_freed_memory(keep: bool = True) -> None:
    """Under Linux's glibc let this process keep what it frees, for a program that asks for the same again and again.

    By itself glibc gives every large tensor back to the kernel and gets its pages back one fault at a time, which
    costs a fifth of a training step on a CPU (`make bench`). Elsewhere nothing happens. Not `keep` is as it was.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            libc.mallopt(_MMAP_MAX, 0 if keep else 65536)
            libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1 if keep else 131072)
