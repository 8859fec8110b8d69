"""Choose the devices a network runs on, their autocast dtype, and settings that make training on a CPU faster."""

import contextlib
import ctypes
import sys
from typing import Any

import torch

from dsgen.errors import DsgenError, InvalidValueError, reason_of

PRECISIONS = ("auto", "float32", "bf16", "fp16")
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt in glibc's malloc.h
_HALF_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # CUDA and MPS, Linux, Windows


def pick_device(name: str = "auto") -> torch.device:
    """Return the device named auto, cpu, cuda, cuda:N or mps; auto is CUDA where there is one, else the CPU.

    MPS is used when it is asked for only: what dsgen measures and tests runs on CUDA and on CPUs. Raises
    `InvalidValueError` for a device that this machine does not have.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    available = ["cpu"] + [f"cuda:{n}" for n in range(torch.cuda.device_count() if cuda else 0)] + ["mps"] * mps
    if name == "auto":
        return torch.device("cuda" if cuda else "cpu")
    if name not in available and not (name == "cuda" and cuda):
        reason = f"got {name!r}, this machine has {', '.join(available)}"
        raise InvalidValueError("--device", reason, "use one of these, or auto")
    return torch.device(name)


def pick_devices(names: str = "auto") -> list[torch.device]:
    """Return the devices of a comma-separated list of names, such as cuda:0,cuda:1."""
    return [pick_device(name.strip()) for name in names.split(",")]


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return what "auto" stands for on a device; other precisions of `PRECISIONS` stand for themselves.

    "auto" is bfloat16 where the device multiplies bfloat16 matrices in hardware: on CUDA (float16 on devices that
    cannot), and on CPUs with AMX, where training is several times faster than in float32. On other CPUs "auto" is
    float32. Labelling measures its network instead, see `Labeller.pick_precision`.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if device.type == "cpu" and _has_amx() else "float32"


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast dtype of a precision, one of `PRECISIONS`, on a device; None for plain float32."""
    return _HALF_DTYPES.get(resolve_precision(precision, device))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on whichever device; on a CPU torch has no class for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)


def is_device_failure(error: BaseException) -> bool:
    """Return whether an error is the device's, so that all that follows fails too: lost, or without an operation."""
    if isinstance(error, NotImplementedError | getattr(torch, "AcceleratorError", ())):  # since torch 2.8
        return True
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)


def picture_failure(what: object, error: Exception, device: torch.device) -> DsgenError:
    """Return the error to report for a picture on which a network failed, so that the others can still be done."""
    if isinstance(error, DsgenError):
        return DsgenError(what, error.reason, error.remedy)
    if is_out_of_memory(error):
        remedy = "free some, scale it down, or use another --device"
        return DsgenError(what, f"does not fit the memory of {device}", remedy)
    reason = f"the network failed on it ({type(error).__name__}: {reason_of(error)})"
    return DsgenError(what, reason, "scale or crop it like the others, or leave it out")


def _has_amx() -> bool:
    """Return whether the CPU multiplies tiles of bfloat16 (Intel, since Sapphire Rapids)."""
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()  # missing before torch 2.11
    return bool(capabilities.get("amx_bf16"))


def tune_for_training() -> None:
    """Make training on a CPU faster, by settings of the whole process; for processes that do nothing else.

    Freed memory is kept (see `keep_freed_memory`), and denormal numbers, which CPUs process slowly, are flushed to 0.
    Threads started earlier do not flush them.
    """
    keep_freed_memory()
    torch.set_flush_denormal(True)


def keep_freed_memory(keep: bool = True) -> None:
    """Let this process keep the memory it frees, for a program that allocates the same sizes again and again.

    By default glibc returns every large tensor to the kernel and gets the pages back one page fault at a time, which
    costs a fifth of a training step on a CPU (`make bench`). `keep=False` restores the default. Has no effect without
    glibc, that is outside Linux or with another C library.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            libc.mallopt(_MMAP_MAX, 0 if keep else 65536)
            libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1 if keep else 131072)
