"""How does the host launch a Triton kernel again and again in little time?

Triton looks at every argument of every launch to find the program that was compiled for such arguments. With dozens of
arguments that takes longer than a short kernel. Here a launch is looked up by what can differ: the constants, the
dtypes of tensors, and which of them begin at a multiple of 16 bytes.
"""

from typing import Any

import torch
from triton.tools.tensor_descriptor import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    TensorDescriptor,
)

ALIGNMENT = 16  # bytes, of which Triton's programs know


class Constants(dict[str, Any]):
    """What a kernel is compiled for, by parameter. Two are the same if they are one object: so keep them."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other


class Kernel:
    """A Triton kernel whose parameters are tensors (or None), then numbers, then constants.

    Numbers have to be unspecialised: floats, or integers that the kernel names in `do_not_specialize`.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._compiled: dict[Any, tuple[Any, tuple[Any, ...]]] = {}

    def __call__(
        self,
        programs: tuple[int, int, int],
        tensors: tuple[Any, ...],
        numbers: tuple[Any, ...],
        constants: Constants,
    ) -> None:
        """Launch on the device of the tensors. The last of them is no descriptor."""
        device = tensors[-1].device
        if device.index is not None and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self(programs, tensors, numbers, constants)
            return
        key: tuple[Any, ...] = (
            constants,
            device,
            # A descriptor's tensor is in fp16, and aligned.
            *[
                None
                if each is None or each.__class__ is TensorDescriptor
                else (each.dtype, each.data_ptr() % ALIGNMENT)
                for each in tensors
            ],
        )
        found = self._compiled.get(key)
        if found is not None:
            compiled, rest = found
            compiled[programs](
                *tensors, *numbers, *rest, stream=torch._C._cuda_getCurrentRawStream(device.index)
            )
            return
        compiled = self.kernel[programs](*tensors, *numbers, **constants)
        if compiled is not None:  # in Triton's interpreter nothing is compiled
            names = self.kernel.arg_names[len(tensors) + len(numbers) :]
            self._compiled[key] = compiled, tuple(constants[name] for name in names)
