"""How does a run go from a token folder to a checkpoint: logged, saved, and resumed after a stop?"""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from realmodels.pretrain.processes import ALONE, Group
from realmodels.pretrain.recipe import Recipe
from realmodels.pretrain.size import size_of
from realmodels.pretrain.tokens import TokenFolder, write_json
from realmodels.pretrain.training import HeldOut, Training, cast_parameters, held_out
from theory.errors import InputError

Total = TypeVar("Total")

CHECKPOINT: Final = "checkpoint.safetensors"
LOCK: Final = ".lock"  # held by the run that works in the folder
# One is in the folder of a finished model, and comes last.
FINISHED: Final = ("model.safetensors", "model.safetensors.index.json")
ENTRIES_PER_RUN: Final = 40  # log entries, each with a pass over the calibration text
CHECKPOINT_SECONDS: Final = 120  # at least so long between two checkpoints
WARM_UP_STEPS, TIMED_STEPS = 10, 30  # steps of the throwaway run that turns seconds into steps


class Resumable(Protocol):
    """A run as its checkpoint knows it. recipe: a dataclass."""

    recipe: Any
    device: torch.device
    group: Group
    step: int

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


def tokens_per_second(
    recipe: Recipe,
    stream: np.ndarray,
    device: torch.device,
    compiled: bool,
    group: Group = ALONE,
) -> float:
    """How fast a recipe trains here, timed on a run that is thrown away."""
    training = Training(recipe, stream, device, compiled, group)
    for _ in range(WARM_UP_STEPS):
        loss = training.advance()
    loss.item()
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        loss = training.advance()
    loss.item()
    return TIMED_STEPS * recipe.batch_tokens / (time.perf_counter() - start)


def steps_within(
    seconds: float, recipe: Recipe, stream: np.ndarray, device: torch.device, compiled: bool
) -> int:
    """Number of steps of a recipe that take this many seconds here."""
    return max(int(seconds * tokens_per_second(recipe, stream, device, compiled) / recipe.batch_tokens), 1)


def matmul_rate(device: torch.device) -> float:
    """Floating-point operations per second of a large product of bf16 matrices on a GPU, of fp32 ones on a CPU."""
    gpu = device.type == "cuda"
    side, dtype = (8192, torch.bfloat16) if gpu else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def products(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            product = a @ b
        product[0, 0].item()
        return time.perf_counter() - start

    products(3)
    return 10 * 2 * side**3 / products(10)


def speed(
    recipe: Recipe, stream: np.ndarray, device: torch.device, compiled: bool, group: Group = ALONE
) -> dict[str, float]:
    """How fast a recipe trains here, beside the dense model of its active parameters and beside matrix products.

    The dense model is DeepSeekMoE's without experts, which is Llama: no sorting of tokens stands in its way. Shares are
    of floating-point operations per second [Size.flops_per_token].
    """
    dense = replace(recipe, family="deepseek").dense()
    found = [tokens_per_second(each, stream, device, compiled, group) for each in (recipe, dense)]
    flops = [
        size_of(each).flops_per_token * tokens for each, tokens in zip((recipe, dense), found, strict=True)
    ]
    rate = group.size * matmul_rate(device)
    return {
        "processes": group.size,
        "tokens_per_second": found[0],
        "dense_tokens_per_second": found[1],
        "matmul_flops_per_second": rate,
        "share_of_dense": flops[0] / flops[1],
        "share_of_matrix_products": flops[0] / rate,
    }


def proceed(
    run: Resumable,
    out: Path,
    ends: Callable[[int], Iterable[int]],
    advance: Callable[[int], Total],
    entry: Callable[[Total, int, float], dict[str, Any]],
    until: float = math.inf,
) -> bool:
    """Go on from OUT's checkpoint, if any, to the last step; stop where the next entry would end after `until`.

    ends: the steps after a step at which the log gets an entry, a line of OUT/log.jsonl.
    advance: takes the run to a step, and gives what it summed up on the way, read from the device.
    entry: what the log says of that, of so many steps, at so many tokens per second.
    until: in seconds of time.perf_counter.
    True if the run is finished.
    """
    first, batch = run.group.rank == 0, run.recipe.batch_tokens
    seconds = resume(run, out, log=first)
    saved = time.perf_counter()
    for end in ends(run.step):
        start, steps = time.perf_counter(), end - run.step
        total = advance(end)
        spent = time.perf_counter() - start
        seconds, speed = seconds + spent, steps * batch / spent
        line = {"step": end, "tokens": end * batch, **entry(total, steps, speed)}
        line |= {"seconds": seconds, "tokens_per_second": speed}
        if first:
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            tqdm.write(json.dumps(line))
        if end == run.recipe.steps:
            break
        now = time.perf_counter()
        stop = run.group.agree(2 * now - start > until, run.device)
        if first and (stop or now - saved >= CHECKPOINT_SECONDS):
            save_checkpoint(run, out, seconds)
            saved = now
        if stop:
            return False
    return True


def is_finished(out: Path) -> bool:
    return any((out / name).exists() for name in FINISHED)


def require_unfinished(out: Path) -> None:
    if is_finished(out):
        raise InputError(f"{out} holds a finished model: give another folder")


@contextmanager
def alone_in(out: Path, group: Group) -> Iterator[None]:
    """For the length of a `with` block, OUT is there and no other run of this machine works in it, or InputError."""
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK, timeout=0)
    try:
        if group.rank == 0:
            lock.acquire()
    except Timeout:
        raise InputError(f"another run works in {out}: wait for its end, or give another folder") from None
    try:
        require_unfinished(out)
        yield
    finally:
        lock.release()


def save_finished(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path, **told: object
) -> None:
    """Write a model and its tokenizer, and what is told as JSON files of these names; then OUT is finished.

    Wherever this is cut off, OUT is not, and its checkpoint is still there.
    """
    half = out / "unfinished"
    shutil.rmtree(half, ignore_errors=True)
    tokenizer.save_pretrained(half)
    network.save_pretrained(half)
    for name, content in told.items():
        write_json(half / f"{name}.json", content)
    for file in sorted(half.iterdir(), key=lambda each: each.name in FINISHED):
        file.replace(out / file.name)
    half.rmdir()
    (out / CHECKPOINT).unlink(missing_ok=True)


def require_vocabulary(recipe: Recipe, tokens: TokenFolder) -> None:
    if recipe.vocabulary != tokens.vocabulary:
        raise InputError(
            f"the recipe has vocabulary={recipe.vocabulary} but the tokens in {tokens.folder} have"
            f" {tokens.vocabulary}: set vocabulary={tokens.vocabulary}"
        )


def require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise InputError(f"the loss is {loss} at step {step}: lower the learning rates of the recipe")


def train(
    tokens: TokenFolder,
    out: Path,
    recipe: Recipe,
    device: torch.device,
    compiled: bool = False,
    group: Group = ALONE,
    until: float = math.inf,
    rate: float | None = None,
    evaluated: Sequence[str] = (),
) -> bool:
    """Train a model and save it to OUT; go on from OUT's checkpoint if there is one. True if the model is finished.

    until: stop at about this time of time.perf_counter, to go on later.
    rate: floating-point operations per second of a device [matmul_rate]; the log tells which share is used.
    evaluated: splits on which the finished model is evaluated, into held_out.json of OUT.
    """
    require_vocabulary(recipe, tokens)
    if recipe.balance_bias:
        raise InputError(
            f"balance_bias is {recipe.balance_bias}: no checkpoint of transformers' OLMoE can hold the bias; give 0"
        )
    require_unfinished(out)
    if not (tokens.folder / "tokenizer.json").is_file():  # rather now than when the model is trained
        raise InputError(f"{tokens.folder} has no tokenizer.json: make the folder anew, or copy the file")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokens.folder)
    training = Training(recipe, tokens.stream("training"), device, compiled, group)
    first = group.rank == 0
    if first:
        epochs = recipe.steps * recipe.batch_tokens / len(training.stream)
        print(f"{epochs:.2f} epochs of {len(training.stream)} tokens", flush=True)
    streams = {
        split: torch.from_numpy(tokens.stream(split).astype(np.int64))
        for split in ("calibration", *evaluated)
    }

    for split, stream in streams.items():
        if len(stream) < 2:
            raise InputError(f"the {split} text has only {len(stream)} tokens: make the token folder anew")

    def on(split: str) -> HeldOut:
        return held_out(training.model, streams[split].to(training.device), recipe.context)

    def losses(split: str, found: HeldOut) -> dict[str, float]:
        bits = found.nats / math.log(2) / tokens.sizes[split]["bytes"]
        return {f"{split}_loss": found.nats / found.tokens, f"{split}_bits_per_byte": bits}

    def ends(done: int) -> Iterator[int]:
        if first:  # the checkpoint, if any, is of this recipe
            write_json(out / "recipe.json", asdict(recipe))
        bar.update(done)
        return _entry_steps(recipe.steps, done)

    def advance(end: int) -> float:
        total = torch.zeros((), device=training.device)
        while training.step < end:
            total += training.advance()
            bar.update()
        return total.item()

    def entry(total: float, steps: int, speed: float) -> dict[str, Any]:
        require_finite(total / steps, training.step)
        line: dict[str, Any] = {"training_loss": total / steps}
        if first:
            found = on("calibration")
            line |= {**losses("calibration", found), "balance": found.balance()}
        if rate is not None:
            used = size_of(recipe).flops_per_token * speed
            line["share_of_matrix_products"] = used / (rate * group.size)
        return line

    with (
        alone_in(out, group),
        tqdm(total=recipe.steps, unit="step", smoothing=0.1, disable=None if first else True) as bar,
    ):
        finished = proceed(training, out, ends, advance, entry, until)
        if finished and first:
            cast_parameters(training.model, torch.bfloat16)
            found: dict[str, Any] = {"text": training.text, "recipe_sha256": recipe.hash()}
            for split in evaluated:
                found |= losses(split, on(split))
            save_finished(training.model, tokenizer, out, **{"held_out": found} if evaluated else {})
    return finished


def _entry_steps(steps: int, done: int) -> Iterator[int]:
    """The steps, beyond those done, after which there is a log entry; the last step is one of them."""
    entries = min(ENTRIES_PER_RUN, steps)
    return (end for entry in range(entries) if (end := (entry + 1) * steps // entries) > done)


def save_checkpoint(training: Resumable, out: Path, seconds: float) -> None:
    """Tensors as safetensors, and all else as JSON beside them, in one file that is written whole or not at all."""
    tensors: dict[str, Tensor] = {}
    rest = _without_tensors(training.state() | {"seconds": seconds}, tensors)
    unfinished = out / "checkpoint.unfinished"
    unfinished.unlink(missing_ok=True)  # of a run that was killed; or a link, which is not followed
    save_file(tensors, unfinished, metadata={"state": json.dumps(rest)})
    unfinished.replace(out / CHECKPOINT)


def _without_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON; tensors are moved into `tensors`, under the numbers that stand in their places."""
    if isinstance(value, Tensor):
        number = str(len(tensors))
        tensors[number] = value.detach().contiguous()
        return {"tensor": number}
    if isinstance(value, dict):  # whose keys need not be texts
        return {"pairs": [[key, _without_tensors(each, tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [_without_tensors(each, tensors) for each in value]
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `_without_tensors` was given."""
    if isinstance(value, list):
        return [_with_tensors(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {key: _with_tensors(each, tensors) for key, each in value["pairs"]}


def resume(training: Resumable, out: Path, log: bool = True) -> float:
    """Load OUT's checkpoint, if any; the seconds that were spent up to it.

    log: drop the log's later entries.
    """
    entries_file, path = out / "log.jsonl", out / CHECKPOINT
    if not path.exists():
        if log:
            entries_file.unlink(missing_ok=True)
        return 0.0
    try:
        with safe_open(path, framework="pt", device=str(training.device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = _with_tensors(json.loads(file.metadata()["state"]), tensors)
        recipe, seconds = type(training.recipe)(**state["recipe"]), float(state["seconds"])
        entries = [
            entry for entry in entries_file.read_text().splitlines(keepends=True) if entry.endswith("}\n")
        ]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no checkpoint ({error}): delete it to begin anew") from None
    if recipe != training.recipe:
        raise InputError(
            f"{out} holds a checkpoint of another recipe: give its recipe.json, or another folder"
        )
    training.load_state(state)
    if log:
        entries_file.write_text(
            "".join(entry for entry in entries if json.loads(entry)["step"] <= training.step)
        )
    return seconds
