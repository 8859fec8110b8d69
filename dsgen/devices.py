"""Pick the devices a network runs on."""

import torch

from dsgen.errors import DsgenError


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
