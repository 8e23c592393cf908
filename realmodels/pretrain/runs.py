"""How does a run go from a token folder to a checkpoint: logged, saved, and resumed after a stop?"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from realmodels.pretrain.recipe import Recipe
from realmodels.pretrain.tokens import TokenFolder, write_json
from realmodels.pretrain.training import Training, cast_parameters, held_out
from theory.errors import InputError

CHECKPOINT: Final = "checkpoint.safetensors"
ENTRIES_PER_RUN: Final = 40  # log entries, each with a pass over the calibration text and a checkpoint
WARM_UP_STEPS, TIMED_STEPS = 10, 30  # steps of the throwaway run that turns seconds into steps


class Resumable(Protocol):
    """A run as its checkpoint knows it. recipe: a dataclass."""

    recipe: Any
    device: torch.device
    step: int

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


def steps_within(
    seconds: float, recipe: Recipe, stream: np.ndarray, device: torch.device, compiled: bool
) -> int:
    """Number of steps of a recipe that take this many seconds here, timed on a run that is thrown away."""
    training = Training(recipe, stream, device, compiled)
    for _ in range(WARM_UP_STEPS):
        loss = training.advance()
    loss.item()
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        loss = training.advance()
    loss.item()
    return max(int(seconds * TIMED_STEPS / (time.perf_counter() - start)), 1)


def train(
    tokens: TokenFolder, out: Path, recipe: Recipe, device: torch.device, compiled: bool = False
) -> None:
    """Train a model and save it to OUT; go on from OUT's checkpoint if there is one."""
    if recipe.vocabulary != tokens.vocabulary:
        raise InputError(
            f"the recipe has vocabulary={recipe.vocabulary} but the tokens in {tokens.folder} have"
            f" {tokens.vocabulary}: set vocabulary={tokens.vocabulary}"
        )
    if recipe.balance_bias:
        raise InputError(
            f"balance_bias is {recipe.balance_bias}: no checkpoint of transformers' OLMoE can hold the bias; give 0"
        )
    if (out / "model.safetensors").exists():
        raise InputError(f"{out} holds a finished model: give another folder")
    training = Training(recipe, tokens.stream("training"), device, compiled)
    seconds = resume(training, out)
    calibration = torch.from_numpy(tokens.stream("calibration").astype(np.int64)).to(device)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "recipe.json", asdict(recipe))
    with tqdm(total=recipe.steps, initial=training.step, unit="step", smoothing=0.1) as bar:
        for end in _entry_steps(recipe.steps, training.step):
            start, first = time.perf_counter(), training.step
            total = torch.zeros((), device=device)
            while training.step < end:
                total += training.advance()
                bar.update()
            loss = total.item() / (end - first)
            spent = time.perf_counter() - start
            if not math.isfinite(loss):
                raise InputError(f"the loss is {loss} at step {end}: lower the learning rates of the recipe")
            seconds += spent
            found = held_out(training.model, calibration, recipe.context)
            balance = found.balance()
            bits = found.nats / math.log(2) / tokens.sizes["calibration"]["bytes"]
            speed = (end - first) * recipe.batch_tokens / spent
            entry = {
                "step": end,
                "tokens": end * recipe.batch_tokens,
                "training_loss": loss,
                "calibration_loss": found.nats / found.tokens,
                "calibration_bits_per_byte": bits,
                "balance": balance,
                "seconds": seconds,
                "tokens_per_second": speed,
            }
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
            save_checkpoint(training, out, seconds)
            bar.set_postfix_str(
                f"loss {loss:.3f}, calibration {bits:.4f} bits per byte, balance {min(balance, default=1):.2f},"
                f" {speed:.0f} tokens/s"
            )
    cast_parameters(training.model, torch.bfloat16)
    training.model.save_pretrained(out)
    PreTrainedTokenizerFast.from_pretrained(tokens.folder).save_pretrained(out)
    (out / CHECKPOINT).unlink()


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
        recipe, seconds = state["recipe"], float(state["seconds"])
        entries = [
            entry for entry in entries_file.read_text().splitlines(keepends=True) if entry.endswith("}\n")
        ]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no checkpoint ({error}): delete it to begin anew") from None
    if recipe != json.loads(json.dumps(asdict(training.recipe))):
        raise InputError(
            f"{out} holds a checkpoint of another recipe: give its recipe.json, or another folder"
        )
    training.load_state(state)
    if log:
        entries_file.write_text(
            "".join(entry for entry in entries if json.loads(entry)["step"] <= training.step)
        )
    return seconds
