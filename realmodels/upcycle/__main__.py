"""The command line of the package; the package's docstring says how it is called."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from realmodels.load import load
from realmodels.pretrain import experts
from realmodels.pretrain.processes import processes
from realmodels.pretrain.recipe import read_recipe
from realmodels.pretrain.tokens import encode, read
from realmodels.text import evaluation_text, held_out
from realmodels.upcycle.acceptance import check, write
from realmodels.upcycle.conversion import convert
from realmodels.upcycle.generation import block_file, cut, generate, read_blocks
from realmodels.upcycle.healing import Healing, heal, save
from realmodels.upcycle.recipe import Recipe, read_recipe_of
from realmodels.upcycle.source import dequantise, installed_gguf
from theory.errors import InputError, run


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m realmodels.upcycle", description="Turns a dense model into a mixture of experts."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, does: Callable[[argparse.Namespace], None], help: str, *folders: str) -> Any:
        added = commands.add_parser(name, help=help)
        added.set_defaults(does=does)
        for folder in folders:
            added.add_argument(folder, type=Path)
        added.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        return added

    own = command("source", _source, "write the dense model", "dense")
    own.add_argument("--gguf", type=Path, help="its GGUF file; default: that of the installed package")
    converting = command("convert", _convert, "make a mixture of experts of it", "dense", "moe")
    generating = command("generate", _generate, "let the dense model write text", "dense", "tokens")
    encoding = command("encode", _encode, "add text of others, for heal --tokens", "dense", "tokens")
    encoding.add_argument("texts", type=Path, nargs="+", help="UTF-8 files; a zero byte is between documents")
    healing = command("heal", _heal, "train the mixture of experts", "dense", "moe", "out")
    healing.add_argument("--tokens", type=Path, nargs="+", required=True, help="the last has held-out blocks")
    healing.add_argument("--minutes", type=float, help="stop after so long, to go on later")
    for each in (converting, generating, encoding, healing):
        each.add_argument("--recipe", type=Path, help="JSON file with entries of the recipe")
        each.add_argument("--set", nargs="*", default=(), metavar="KEY=VALUE", help="entries of the recipe")
    checking = command("check", _check, "compare with the dense model", "dense", "folder")
    checking.add_argument("--tasks", default="paper", help="as paper_repro.py takes them, or none")
    checking.add_argument("--questions", type=int, help="of each task; default: all")
    checking.add_argument("--text", default="docstrings", help="docstrings, prose or a UTF-8 file")
    options = parser.parse_args(arguments)
    options.does(options)


def _recipe(options: argparse.Namespace) -> Recipe:
    recipe = read_recipe(Recipe, options.recipe, options.set)
    print(f"recipe {recipe.hash()[:16]}", flush=True)
    return recipe


def _opened(folder: Path, device: torch.device | str, **kwargs: Any) -> tuple[Any, Any]:
    """Model and tokenizer of a folder; in bf16 on a GPU."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no model: make it first")
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, **kwargs)
    return model.to(device), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _source(options: argparse.Namespace) -> None:
    dequantise(options.gguf or installed_gguf(), options.dense)


def _convert(options: argparse.Namespace) -> None:
    recipe = _recipe(options)
    dense, tokenizer = _opened(options.dense, options.device)
    blocks = cut(encode(tokenizer, held_out("calibration")), recipe.context).astype(np.int64)
    count = min(max(recipe.calibration_tokens // recipe.context, 1), len(blocks))
    chosen = torch.from_numpy(blocks[np.arange(count) * len(blocks) // count])
    network = convert(dense.float(), recipe, chosen)
    save(network, tokenizer, recipe, options.moe)
    print(json.dumps({"parameters": sum(each.numel() for each in network.parameters())}))


def _generate(options: argparse.Namespace) -> None:
    recipe = _recipe(options)
    with processes(torch.device(options.device)) as (group, device):
        generate(*_opened(options.dense, device), recipe, options.tokens, *group)


def _encode(options: argparse.Namespace) -> None:
    recipe = _recipe(options)
    documents = [each for path in options.texts for each in read(path).split("\0") if each.strip()]
    tokenizer = AutoTokenizer.from_pretrained(options.dense, local_files_only=True)
    blocks = cut(encode(tokenizer, documents), recipe.context)
    options.tokens.mkdir(parents=True, exist_ok=True)
    np.save(block_file(options.tokens, 0), blocks)
    print(json.dumps({"tokens": blocks.size}))


def _heal(options: argparse.Namespace) -> None:
    recipe = _recipe(options)
    recipe.require_converted(options.moe)
    blocks = read_blocks(options.tokens, recipe.context)
    with processes(torch.device(options.device)) as (group, device):
        dense, tokenizer = _opened(options.dense, device)
        network, _ = _opened(options.moe, device, experts_implementation=experts.NAME)
        healing = Healing(recipe, dense, network, blocks, group, compiled=device.type == "cuda")
        finished = heal(healing, tokenizer, options.out, options.minutes)
    if group.rank == 0:
        print("finished" if finished else "stopped: the same command goes on")


def _check(options: argparse.Namespace) -> None:
    recipe = read_recipe_of(options.folder)
    dense, _ = _opened(options.dense, options.device)
    model = load(options.folder, options.device, dense.dtype)
    documents = evaluation_text(options.text)
    blocks = torch.from_numpy(cut(encode(model.tokenizer, documents), recipe.context).astype(np.int64))
    tasks = () if options.tasks == "none" else options.tasks.split(",")
    found = check(model, dense, recipe, blocks, tasks, options.questions)
    write(found, options.folder)
    print(found)


if __name__ == "__main__":
    run(main)
