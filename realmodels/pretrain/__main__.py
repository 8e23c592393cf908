"""The command line of the package; the package's docstring says how it is called."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from realmodels.pretrain.recipe import Recipe, read_recipe
from realmodels.pretrain.runs import steps_within, train
from realmodels.pretrain.tokens import TokenFolder, tokenize
from theory.errors import run


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m realmodels.pretrain", description="Trains the models that ship."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("tokenize", help="train a tokenizer and encode the corpus")
    command.add_argument("texts", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--vocabulary", type=int, default=Recipe.vocabulary)
    command = commands.add_parser("train", help="train a model")
    command.add_argument("tokens", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="entries of the recipe")
    command.add_argument("--recipe", type=Path, help="JSON file with entries of the recipe")
    command.add_argument("--dense", action="store_true", help="a dense model of the same active parameters")
    command.add_argument("--seconds", type=float, help="set the recipe's steps to what takes so long here")
    command.add_argument("--compile", action="store_true", help="use torch.compile")
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if options.command == "tokenize":
        tokenize(options.texts, options.out, options.vocabulary)
        return
    recipe = read_recipe(Recipe, options.recipe, options.overrides)
    recipe = recipe.dense() if options.dense else recipe
    tokens, device = TokenFolder.open(options.tokens), torch.device(options.device)
    if options.seconds is not None:
        steps = steps_within(options.seconds, recipe, tokens.stream("training"), device, options.compile)
        recipe = replace(recipe, steps=steps)
    train(tokens, options.out, recipe, device, options.compile)


if __name__ == "__main__":
    run(main)
