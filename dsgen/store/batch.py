"""Turn the batches of a loader into floats, and move them to a device."""

from collections import deque
from collections.abc import Generator

import torch

from dsgen.store.arena import Batch


def as_floats(batch: Batch) -> Batch:
    """Turn a loader's batch into float32, on the device it is on.

    `image` and `background` become (B,3,S,S), 0..1, in channels-last memory, `mask` (B,1,S,S), 0 or 1, `depth`
    (B,1,S,S) metres, 0 = no depth; `row` stays as it is.
    """
    floats = {}
    for name, values in batch.items():
        if name in ("image", "background"):
            floats[name] = values.permute(0, 3, 1, 2).float().div_(255)
        elif name == "mask":
            floats[name] = values[:, None].float().div_(255)
        elif name == "depth":
            # by way of int16, as not every operation and device supports uint16
            millimetres = values.view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF)
            floats[name] = millimetres[:, None].float().div_(1000)
        else:
            floats[name] = values
    return floats


def move_batches(
    batches: Generator[Batch, None, None], device: torch.device, floats: bool
) -> Generator[Batch, None, None]:
    """Move batches to a device; `row` stays on the CPU.

    With CUDA, one batch is copied ahead, while the device computes on the one before.
    """
    if device.type != "cuda":
        for batch in batches:
            ready = as_floats(batch) if floats else batch  # before they move: MPS has no unsigned 16-bit numbers
            yield {name: values if name == "row" else values.to(device) for name, values in ready.items()}
        return
    copy_stream = torch.cuda.Stream(device)
    ahead: deque[tuple[Batch, torch.cuda.Event]] = deque()

    def hand_over() -> Batch:
        moved, copied = ahead.popleft()
        current_stream = torch.cuda.current_stream(device)
        current_stream.wait_event(copied)
        for name, values in moved.items():
            if name != "row":  # the copy stream owns the memory, which must not be reused before this stream is done
                values.record_stream(current_stream)
        return moved

    for batch in batches:
        with torch.cuda.stream(copy_stream):
            moved = {
                name: values if name == "row" else values.to(device, non_blocking=True)
                for name, values in batch.items()
            }
            ahead.append((as_floats(moved) if floats else moved, copy_stream.record_event()))
        if len(ahead) > 1:
            yield hand_over()
    while ahead:
        yield hand_over()
