"""Which processes train one model together?"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, distributed

from theory.errors import InputError


class Group(NamedTuple):
    """The processes of a run, one for each GPU; a run without torchrun has one."""

    rank: int
    size: int

    def sum(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes."""
        for tensor in tensors if self.size > 1 else ():
            distributed.all_reduce(tensor)

    def agree(self, value: bool, device: torch.device) -> bool:
        """True if it is true in the first process."""
        told = torch.tensor(float(value and self.rank == 0), device=device)
        self.sum(told)
        return bool(told.item())

    def require_shares(self, passes: int, of: str) -> None:
        """InputError unless the processes can share the passes of a step. of: their number in the recipe."""
        if passes % self.size:
            raise InputError(
                f"a step has {passes} passes, {of} of the recipe: give a number that {self.size} processes can share"
            )


ALONE = Group(0, 1)


@contextmanager
def processes(device: torch.device) -> Iterator[tuple[Group, torch.device]]:
    """The processes that torchrun started, and the device of this one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # streams and graphs are of the current device
        yield ALONE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(distributed.get_rank(), size), device
    finally:
        distributed.destroy_process_group()
