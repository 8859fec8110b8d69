"""Pick the devices a network runs on, and the arithmetic they are good at."""

from typing import Any

import torch

from dsgen.errors import DsgenError

PRECISIONS = ("auto", "float32", "bf16", "fp16")
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """Return the device meant by auto, cpu, cuda, cuda:N or mps; auto is the best there is."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    present = ["cpu"] + [f"cuda:{n}" for n in range(torch.cuda.device_count() if cuda else 0)] + ["mps"] * mps
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    if name not in present and not (name == "cuda" and cuda):
        raise DsgenError(f"--device: got {name!r}, this machine has {', '.join(present)}; take one of these or auto")
    return torch.device(name)


def pick_devices(names: str = "auto") -> list[torch.device]:
    """Return the devices meant by names with commas between, such as cuda:0,cuda:1."""
    return [pick_device(name.strip()) for name in names.split(",")]


def half_type(precision: str, device: torch.device) -> torch.dtype | None:
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
