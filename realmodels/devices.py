"""Where are a model's weights: on one device, or spread by accelerate over several devices, CPU memory and disk?

A module whose weights accelerate keeps elsewhere has empty parameters on the meta device and a hook around its
`forward`. The hook moves the inputs to the device that the module computes on, fetches the weights, and lets go of
them afterwards. Code that reads weights outside such a call has to ask for them here.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def device_of(module: nn.Module) -> torch.device:
    """The device that a module computes on; for a whole network, the one that its inputs should be on."""
    device = getattr(hook_of(module), "execution_device", None)
    return next(module.parameters()).device if device is None else torch.device(device)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters by name, detached, on the device that the module computes on.

    Weights fetched from elsewhere are copies: they are gone when the caller lets go of them.
    """
    own = {name: weight.detach() for name, weight in module.named_parameters(recurse=False)}
    if not is_offloaded(module):
        return own
    device, kept = device_of(module), hook_of(module).weights_map
    return {name: kept[name].to(device, weight.dtype) for name, weight in own.items()}


def hook_of(module: nn.Module) -> Any:
    """The hook of accelerate on the module, or None."""
    return getattr(module, "_hf_hook", None)


def is_offloaded(module: nn.Module) -> bool:
    """True if accelerate fetches the module's weights for each call."""
    return bool(getattr(hook_of(module), "offload", False))


def without_hook(module: nn.Module) -> nn.Module:
    """The module without accelerate's hook, sharing all state with it; the caller has to do what the hook does."""
    if hook_of(module) is None:
        return module
    plain = copy.copy(module)
    for name in ("_hf_hook", "_old_forward", "forward"):
        del plain.__dict__[name]
    return plain


@contextmanager
def fetched_again_for_gradients(network: nn.Module) -> Iterator[None]:
    """Within this block, let the backward pass fetch offloaded weights again, one module at a time.

    Otherwise autograd would keep all weights of the forward pass, more than the device may hold.
    Gradients are the same.
    """
    offloaded = [module for module in network.modules() if is_offloaded(module)]

    def pack(saved: Tensor) -> Any:
        for module in offloaded:
            for name, weight in module.named_parameters(recurse=False):
                if weight.is_meta or weight.device != saved.device or weight.dtype != saved.dtype:
                    continue
                place = saved.data_ptr() - weight.data_ptr()
                if 0 <= place < weight.nbytes:
                    return module, name, saved.size(), saved.stride(), place // weight.element_size()
        return saved

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        module, name, size, stride, place = packed
        weight = weights_of(module)[name]
        return weight.as_strided(size, stride, weight.storage_offset() + place)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
