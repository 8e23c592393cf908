"""What of a model computes the same on every chip? The modules that are done before the first analog one begins.

When a text is read again, with other noise or another placement, these modules get the same inputs and return the same
outputs. So the outputs are kept, and the modules are not called again.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from realmodels.analog import AnalogExperts, AnalogLinear
from realmodels.devices import device_of

# At most so many bytes of outputs are kept; others are computed each time.
KEPT_BYTES = {"cpu": 2**29, "cuda": 2**33}


class Prefix:
    """Outputs of the modules that a network calls before its first analog one, by batch of one text.

    They hold as long as the text, its batches and the network's own parameters are the same.
    Kept are outputs made of tensors, of modules that are called as often for any batch. Outputs that another module
    writes into are not kept.
    """

    def __init__(self, network: nn.Module, tokens: Int[Tensor, "blocks tokens"]) -> None:
        self._network = network
        self._spans = _spans(network, tokens[:1, :2].to(device_of(network)))
        self._outputs: dict[tuple[int, str], list[Any]] = {}
        self._never = set[str]()
        self._left = KEPT_BYTES.get(device_of(network).type, KEPT_BYTES["cpu"])

    @contextmanager
    def reading(self, batch: int) -> Iterator[None]:
        """For the length of a `with` block the network, as it is deployed now, reads the batch of this number."""
        recorders = {}
        with ExitStack() as patches:
            for name in self._before_analog():
                module = self._network.get_submodule(name)
                kept = self._outputs.get((batch, name))
                forward = _Recorder(module.forward) if kept is None else _replayed(kept)
                if isinstance(forward, _Recorder):
                    recorders[name] = forward
                patches.enter_context(_with_forward(module, forward))
            yield
        for name, recorder in recorders.items():
            size = sum(each.nbytes for each in recorder.tensors)
            if not recorder.repeatable or len(recorder.outputs) != self._spans[name].calls:
                self._never.add(name)
            elif size <= self._left:
                self._left -= size
                self._outputs[batch, name] = recorder.outputs

    def _before_analog(self) -> list[str]:
        """The modules to keep, without those within them; none if the whole network is digital."""
        analog = [
            name
            for name, module in self._network.named_modules()
            if isinstance(module, AnalogLinear | AnalogExperts) and module.is_analog
        ]
        if not analog:
            return []
        # What was not called, as an expert without tokens, may be called as soon as what it is in.
        called = [next(each for each in _and_what_it_is_in(name) if each in self._spans) for name in analog]
        begin = min(self._spans[name].begin for name in called)
        done = {name for name, span in self._spans.items() if span.end < begin}
        return [
            name
            for name in sorted(done - self._never)
            if not any(each in done - self._never for each in _and_what_it_is_in(name)[1:])
        ]


@dataclass
class _Span:
    """The moments of a module's first beginning and last end, and how often it was called."""

    begin: int
    end: int = 0
    calls: int = 0


@torch.no_grad()
def _spans(network: nn.Module, tokens: Int[Tensor, "blocks tokens"]) -> dict[str, _Span]:
    """When each module is called, by name, while the network reads the tokens."""
    spans: dict[str, _Span] = {}
    moment = 0

    def begin(name: str) -> None:
        nonlocal moment
        moment += 1
        spans.setdefault(name, _Span(moment)).calls += 1

    def end(name: str) -> None:
        nonlocal moment
        moment += 1
        spans[name].end = moment

    with ExitStack() as handles:
        for name, module in network.named_modules():
            before = module.register_forward_pre_hook(lambda *_, name=name: begin(name))
            after = module.register_forward_hook(lambda *_, name=name: end(name))
            handles.callback(before.remove)
            handles.callback(after.remove)
        network(input_ids=tokens, use_cache=False)
    return spans


class _Recorder:
    """A module's forward that remembers what it returned."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self.outputs: list[Any] = []
        self.tensors: list[Tensor] = []
        self._versions: list[int] = []
        self._strange = False

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        output = self._forward(*inputs, **named)
        self.outputs.append(output)
        for each in _leaves(output):
            if isinstance(each, Tensor):
                self.tensors.append(each)
                self._versions.append(each._version)
            else:
                self._strange |= each is not None
        return output

    @property
    def repeatable(self) -> bool:
        """True if nothing was returned but tensors, into which nobody has written since."""
        return not self._strange and [each._version for each in self.tensors] == self._versions


def _leaves(output: Any) -> Iterator[Any]:
    if isinstance(output, dict):  # as outputs of transformers are
        output = list(output.values())
    if isinstance(output, list | tuple):
        for each in output:
            yield from _leaves(each)
    else:
        yield output


def _replayed(outputs: list[Any]) -> Callable[..., Any]:
    following = iter(outputs)
    return lambda *_, **__: next(following)


@contextmanager
def _with_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = vars(module).get("forward")  # as accelerate sets one
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _and_what_it_is_in(name: str) -> list[str]:
    """The name of a module, then those of all that it is in, up to the network's, which is empty."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)] + [""]
