"""The command line of the package; the package's docstring says how it is called."""

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from realmodels.pretrain.host import Host, jobs
from realmodels.pretrain.ladder import LADDER
from realmodels.pretrain.processes import processes
from realmodels.pretrain.recipe import Recipe, entries, read_recipe
from realmodels.pretrain.runs import require_vocabulary, speed, steps_within, train
from realmodels.pretrain.tokens import TokenFolder, tokenize
from theory.errors import InputError, run


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m realmodels.pretrain", description="Trains the models that ship, and the ladder's."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("tokenize", help="train a tokenizer and encode the corpus")
    command.add_argument("texts", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--vocabulary", type=int, default=Recipe.vocabulary)
    command.add_argument("--documents", type=float, default=1.0, help="share that is read, chosen at random")
    command.add_argument("--pieces", type=int, default=1, help="files, each with documents chosen at random")
    command.add_argument("--seed", type=int, default=0, help="of what is chosen at random")
    command = commands.add_parser("train", help="train a model")
    command.add_argument("tokens", type=Path)
    command.add_argument("out", type=Path)
    _add_recipe(command)
    command.add_argument(
        "--seconds", type=_positive, help="set the recipe's steps to what takes so long here"
    )
    command.add_argument(
        "--minutes", type=_positive, default=math.inf, help="stop after so long, to go on later"
    )
    command.add_argument(
        "--matmul-rate", type=_positive, help="FLOP/s of a device, to which the log compares"
    )
    command.add_argument(
        "--evaluate", nargs="+", default=(), metavar="SPLIT", help="evaluate the finished model"
    )
    command = commands.add_parser("speed", help="time a recipe, and the dense model of its active parameters")
    command.add_argument("tokens", type=Path)
    _add_recipe(command)
    command = commands.add_parser("ladder", help="train models of the ladder")
    command.add_argument("tokens", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("names", nargs="*", metavar="NAME", help="models; default: all")
    command.add_argument("--seeds", type=int, nargs="+", help="default: as many as the ladder says, from 0")
    command.add_argument("--rates", type=float, nargs="+", default=(), help="try these base rates instead")
    command.add_argument("--minutes", type=_positive, help="stop after so long, to go on later")
    command.add_argument("--side-by-side", type=int, help="models on one GPU, or on the CPU, at once")
    for each in commands.choices.values():
        if each is not commands.choices["tokenize"]:
            each.add_argument("--compile", action="store_true", help="use torch.compile")
            each.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    try:
        {"tokenize": _tokenize, "train": _train, "speed": _speed, "ladder": _ladder}[options.command](options)
    except OSError as error:
        raise InputError(f"{error}: give a folder that can be written, with enough space") from None
    except SafetensorError as error:  # also what a full disk is to it
        raise InputError(f"weights cannot be written ({error}): give a folder with enough space") from None
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        sys.exit(130)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not allowed: give a finite number above 0")
    return value


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type != "cpu" and (device.index or 0) >= gpus:
        raise InputError(f"the device is {name!r}: give cpu, or cuda where there is a GPU")
    return device


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="entries of the recipe")
    command.add_argument("--recipe", help="JSON file with entries of the recipe, or a model of the ladder")
    command.add_argument("--dense", action="store_true", help="a dense model of the same active parameters")


def _recipe(options: argparse.Namespace) -> Recipe:
    named = LADDER.get(options.recipe)
    file = None if named or options.recipe is None else Path(options.recipe)
    overrides = [*(entries(named.recipe) if named else ()), *options.overrides]
    recipe = read_recipe(Recipe, file, overrides)
    return recipe.dense() if options.dense else recipe


def _tokenize(options: argparse.Namespace) -> None:
    tokenize(options.texts, options.out, options.vocabulary, options.documents, options.pieces, options.seed)


def _train(options: argparse.Namespace) -> None:
    until = time.perf_counter() + 60 * options.minutes
    recipe, tokens = _recipe(options), TokenFolder.open(options.tokens)
    with processes(_device(options.device)) as (group, device):
        if options.seconds is not None:
            stream = tokens.stream("training")
            recipe = replace(
                recipe, steps=steps_within(options.seconds, recipe, stream, device, options.compile)
            )
        known = {"until": until, "rate": options.matmul_rate, "evaluated": options.evaluate}
        finished = train(tokens, options.out, recipe, device, options.compile, group, **known)
    if not finished and group.rank == 0:
        print("stopped: the same command goes on")


def _speed(options: argparse.Namespace) -> None:
    recipe, stream = _recipe(options), TokenFolder.open(options.tokens).stream("training")
    with processes(_device(options.device)) as (group, device):
        found = speed(recipe, stream, device, options.compile, group)
        if group.rank == 0:
            print(json.dumps(found))


def _ladder(options: argparse.Namespace) -> None:
    chosen = jobs(options.out, options.names, options.seeds, options.rates)
    tokens = TokenFolder.open(options.tokens)
    host = Host.here(options.device, options.side_by_side, options.compile)
    for job in chosen:
        require_vocabulary(job.recipe, tokens)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the trainings, too
    if not host.train(chosen, options.tokens, options.minutes):
        sys.exit("some models are not finished: the same command goes on")


if __name__ == "__main__":
    run(main)
