"""What are the modules of a model given while it reads text, and how does the loss depend on what they return?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from realmodels.devices import device_of, fetched_again_for_gradients
from realmodels.evaluate import BLOCK_TOKENS, token_blocks
from realmodels.model import Model

CALIBRATION_TOKENS = 4096

# A hook gets the module, its positional and its named inputs, and its output; it may return another output.
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]


@dataclass
class Call:
    """Inputs of one call of a module, and the gradient of the summed loss at the module's output.

    The gradient is 1 everywhere if the loss has none there: what chooses, such as a sparse attention's indexer.
    seen: what `look` or `weigh` made of the rows, if `record` was given one.
    """

    inputs: tuple[Tensor, ...]
    gradient: Tensor | None = None
    seen: Any = None


def calibration_tokens(model: Model, texts: Sequence[str]) -> Int[Tensor, "blocks tokens_plus_1"]:
    """CALIBRATION_TOKENS tokens in blocks spread over `texts`, on the device that the model reads them on.

    InputError if `texts` are the evaluation split.
    """
    length = min(BLOCK_TOKENS, model.context)
    blocks = max(2, CALIBRATION_TOKENS // length)
    tokens = token_blocks(model, texts, length, blocks, purpose="calibration").tokens
    return tokens.to(device_of(model.network))


@contextmanager
def hooked(network: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Calls each hook after every call of the module of that name, for the length of a `with` block."""
    handles = []
    try:
        for name, hook in hooks.items():
            module = network.get_submodule(name)
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def record(
    model: Model,
    names: Sequence[str],
    tokens: Int[Tensor, "blocks tokens_plus_1"],
    *,
    rows: int | None = None,
    gradient: bool = True,
    look: Callable[[nn.Module, tuple[Tensor, ...], Tensor], Any] | None = None,
    weigh: Callable[[nn.Module, tuple[Tensor, ...], Tensor], Any] | None = None,
) -> dict[str, list[Call]]:
    """The calls of the modules `names`, by name, while the model reads `tokens` as one batch.

    rows: keep at most so many rows of each module, spread evenly over its calls; None keeps all, in their shape.
    gradient: also record the gradient of the next-token loss, in nats and summed over all tokens.
    look: gets every module with all of its inputs and outputs, whatever `rows` is; the call keeps what it returns.
    weigh: gets every module with the kept inputs and gradient, as soon as there is one; the call keeps what it
        returns in their place, so that no gradient is held until the end.
    Modules that are not called, or only without any token, are left out.
    """
    network, count = model.network, tokens[:, 1:].numel()
    calls: dict[str, list[Call]] = {}

    def kept(values: Tensor) -> Tensor:
        return values if rows is None else spread(values, rows, count)

    def hook(name: str) -> Hook:
        def keep(module: nn.Module, given: tuple[Any, ...], __: dict[str, Any], output: Tensor) -> None:
            if not output.numel():
                return  # an expert without tokens
            # The inputs may come from another device: accelerate moves them after this hook.
            call = Call(tuple(kept(each.detach()).to(output.device) for each in given))
            if look is not None:
                with torch.no_grad():
                    call.seen = look(module, tuple(each.to(output.device) for each in given), output)
            calls.setdefault(name, []).append(call)

            def at_output(slope: Tensor) -> None:
                call.gradient = kept(slope)
                if weigh is not None:
                    call.seen = weigh(module, call.inputs, call.gradient)
                    call.inputs, call.gradient = (), None

            if gradient and weigh is None:
                at_output(torch.ones_like(output))  # unless the loss has a gradient there
            if output.requires_grad:
                output.register_hook(at_output)

        return keep

    def with_gradient(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], embedded: Tensor) -> Tensor:
        return embedded.detach().requires_grad_(gradient)

    embeddings = next(
        name for name, each in network.named_modules() if each is network.get_input_embeddings()
    )
    with (
        # Parameters need no gradient, but what is computed from these embeddings has one.
        hooked(network, {**{name: hook(name) for name in names}, embeddings: with_gradient}),
        torch.set_grad_enabled(gradient),
        fetched_again_for_gradients(network),
    ):
        logits = network(input_ids=tokens[:, :-1], use_cache=False).logits
        if gradient:
            targets = tokens[:, 1:].flatten().to(logits.device)
            F.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="sum").backward()
    return calls


def spread(values: Float[Tensor, "*tokens width"], rows: int, all_tokens: int) -> Float[Tensor, "rows width"]:
    """`rows` of all tokens, or as large a share of some tokens: evenly spread, rounded up."""
    flat = values.reshape(-1, values.shape[-1])
    count = min(len(flat), -(-len(flat) * rows // all_tokens))
    return flat[torch.arange(count, device=flat.device) * len(flat) // count]
