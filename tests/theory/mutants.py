"""Is every small change of a formula noticed? The mutation test of the theory.

    python tests/theory/mutants.py [--claim ID] [--most N] [--workers N]

A mutant is a copy of a module with one change in one of FORMULAS: a sign flipped, a factor dropped, a product
turned into a quotient, < into <=, a constant or a function replaced. A mutant is caught if a step in the derivation of
a claim of that formula fails, or else a test that carries such a claim. Mutants that cannot be noticed, as they are the
same function, are listed in EQUIVALENT with the reason. Exit status 1 if a mutant is not caught.
"""

import argparse
import ast
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from itertools import accumulate
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import CodeType, ModuleType

# Imported once, and not in each of the processes that are forked below. Of theory, only what no mutant changes.
import flint  # noqa: F401
import hypothesis
import pytest
import scipy.stats  # noqa: F401
import sympy  # noqa: F401
import torch
import z3  # noqa: F401

from theory.claims import CLAIMS, marked_tests
from theory.errors import InputError, run

TESTS = Path(__file__).parents[1]
STEP_SECONDS = 60  # a step that takes longer has not proved its equation
MUTANT_SECONDS = 240  # a mutant that takes longer does not end
EXAMPLES = 10  # how many each property test tries

# The functions that state the formulas of a claim; all claims of a function can catch its mutants.
FORMULAS: dict[str, dict[str, tuple[str, ...]]] = {
    "theory.moments": {
        "relu_mean": ("M1",),
        "relu_bias": ("M1",),
        "relu_second_moment": ("M2",),
        "relu_variance": ("M2",),
        "relu_third_moment": ("M3",),
        "relu_third_moment_about": ("M3",),
        "_cubic_tail": ("M3",),
        "_ratio": ("M1", "M2", "M3"),
    },
    "theory.growth": {
        "own_gate": ("G",),
        "token_choice_gate": ("G-token",),
        "growth_rate": ("G",),
        "own_token_weight": ("G",),
        "ratio_correction": ("G",),
        "class_margin": ("G",),
        "knee": ("G",),
        "saturating_weight": ("G",),
        "weight_ratio": ("G",),
        "late_ratio": ("G",),
        "leakage": ("G",),
        "norm_ratio": ("G",),
        "dead_probability": ("G",),
        "momentum_step": ("G-linear",),
        "logistic_time": ("G-logistic",),
        "adam_moments": ("G-adam",),
        "adam_step": ("G-adam",),
        "adam_rate": ("G-adam",),
    },
    "theory.tolerance.formulas": {
        "concentration": ("B",),
        "tolerable_noise": ("B", "Cor"),
        "failure_bound": ("B-mean",),
        "error_bound": ("U",),
        "relu_exponential": ("B-exp",),
        "tail_events": ("Bu",),
        "ideal_frequent_sd": ("Gain",),
        "ideal_third": ("Gain",),
    },
    "theory.damage": {"product_variance": ("D",), "gated_variance": ("D",)},
    "theory.end_to_end": {
        "failure_probability": ("E",),
        "deviation": ("E",),
        "step_unit": ("E",),
        "class_counts": ("E",),
        "gaussian_size": ("E",),
        "binomial_tail": ("E",),
        "rise_size": ("E",),
        "rise_exponent": ("E",),
        "gate_rest": ("E",),
        "most_decrease": ("E",),
        "least_margin": ("E",),
        "most_output": ("E",),
        "most_mean": ("E",),
        "digital_floor": ("E",),
        "noise_sd": ("E",),
        "frequent_lyapunov": ("E",),
        "rare_lyapunov": ("E",),
    },
    "theory.derivations.lemmas": {"gaussian_tail": ("P",)},
    "theory.derivations.moments": {"_first": ("M1",), "_second": ("M2",), "_third": ("M3",)},
}
# Functions that take tensors only, so that no derivation calls them: tests alone catch their mutants. The searches for
# the largest c are left out, as they state no formula.
ON_TENSORS: dict[str, dict[str, tuple[str, ...]]] = {
    "theory.tolerance.network": {
        "Network.noise": ("B",),
        "Network.preactivations": ("B", "H"),
        "Network.token_noise": ("B", "H"),
        "Network.lipschitz_squared": ("B", "H"),
    },
    "theory.tolerance.terms": {
        "Terms.margin": ("B",),
        "Terms.bias": ("B",),
        "Terms.mean": ("B-mean", "P"),
        "Terms.variance": ("P",),
        "terms_of": ("B", "H", "P"),
        "adc_loss": ("H",),
    },
    "theory.tolerance.bounds": {
        "mean_shift": ("C",),
        "uniform_bound": ("Bu",),
        "predicted_accuracy": ("P",),
        "pointwise": ("B",),
    },
    "theory.damage": {"expected_damage": ("D",)},
}
MODULES = tuple(dict.fromkeys([*FORMULAS, *ON_TENSORS]))
EQUIVALENT = {
    "theory.growth.weight_ratio: 1 -> 2": "the rate of both weights, which the ratio does not depend on",
    "theory.tolerance.bounds.mean_shift: shift.mean(1) * network.analog[:, None] -> shift.mean(1)": (
        "a digital expert has no noise, and so no shift"
    ),
    "theory.tolerance.bounds.predicted_accuracy: sd > 0 -> sd >= 0": "mean/0 is infinite or nan, too",
    "theory.tolerance.bounds.uniform_bound: margin <= 0 -> margin < 0": "the formula gives 0 for a margin of 0",
    "theory.tolerance.terms.terms_of: gates > 0 -> gates >= 0": "a token without weight is a term of coefficient 0",
    "theory.tolerance.terms.terms_of: 0 -> 1 (2)": "no inputs have no terms, of whichever number",
    "theory.tolerance.terms.terms_of: labels[:, None, None, None] * network.signs[:, None, None]"
    " -> labels[:, None, None, None] / network.signs[:, None, None]": "a sign is its own inverse",
}

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
# Attributes of tensors and of torch that a mutant swaps.
ATTRIBUTES = {"minimum": "maximum", "maximum": "minimum", "amax": "amin", "sum": "mean"}


@dataclass(frozen=True)
class Mutant:
    """A module with one change.

    name: "module.function: what -> what".
    source: source of the whole module with the change.
    symbolic: True if derivations evaluate the function.
    """

    name: str
    module: str
    claims: tuple[str, ...]
    source: str
    symbolic: bool = True


def mutants(module: str) -> Iterator[Mutant]:
    """Every mutant of the module's formulas, in the order of the source."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_bytes()
    starts = [0, *accumulate(len(line) for line in source.splitlines(keepends=True))]
    tree = ast.parse(source)
    names: Counter[str] = Counter()
    tensors = ON_TENSORS.get(module, {})
    for function, claims in (FORMULAS.get(module, {}) | tensors).items():
        for node in _formula_nodes(_find(tree, function)):
            for variant in _variants(node):
                what = ast.unparse(variant)
                name = f"{module}.{function}: {ast.unparse(node)} -> {what}"
                names[name] += 1
                if names[name] > 1:
                    name += f" ({names[name]})"
                assert isinstance(node, ast.expr) and node.end_lineno and node.end_col_offset  # for mypy
                before = source[: starts[node.lineno - 1] + node.col_offset]
                after = source[starts[node.end_lineno - 1] + node.end_col_offset :]
                changed = (before + f"({what})".encode() + after).decode()
                yield Mutant(name, module, claims, changed, function not in tensors)


def _find(tree: ast.AST, name: str) -> ast.FunctionDef:
    """The function or method with this dotted name."""
    node = tree
    for part in name.split("."):
        node = next(
            each
            for each in ast.iter_child_nodes(node)
            if isinstance(each, ast.ClassDef | ast.FunctionDef) and each.name == part
        )
    assert isinstance(node, ast.FunctionDef)
    return node


def _formula_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that compute: no annotations, checks of the input, indices, or dimensions given to tensor methods."""
    if isinstance(node, ast.FunctionDef):
        children: list[ast.AST] = list(node.body)
    elif isinstance(node, ast.AnnAssign):
        children = [node.value] if node.value else []
    elif isinstance(node, ast.Subscript):
        children = [node.value]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        children = [node.func, *(each for each in node.args if not _is_number(each)), *node.keywords]
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        guard = isinstance(child, ast.If) and all(isinstance(each, ast.Raise) for each in child.body)
        if not guard and not isinstance(child, ast.Assert | ast.Raise):
            yield child
            yield from _formula_nodes(child)


def _is_number(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp):
        return _is_number(node.operand)
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _variants(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.BinOp(left, operator, right):
            if type(operator) in SWAPPED:
                yield ast.BinOp(left, SWAPPED[type(operator)](), right)  # type: ignore[arg-type]
            if isinstance(operator, ast.Mult | ast.Div | ast.Pow):
                yield left
            if isinstance(operator, ast.Mult):
                yield right
        case ast.UnaryOp(ast.USub(), operand):
            yield operand
        case ast.Compare(left, [operator], right) if type(operator) in SWAPPED:
            yield ast.Compare(left, [SWAPPED[type(operator)]()], right)  # type: ignore[list-item]
        case ast.Constant(int() | float() as value) if not isinstance(value, bool):
            yield ast.Constant(value + 1 if isinstance(value, int) or value == 0 else 1.1 * value)
        case ast.Call(ast.Name(name), [argument, *_]) if name in ("Phi", "Q"):
            yield ast.Call(ast.Name("Q" if name == "Phi" else "Phi"), [argument], [])
        case ast.Attribute(value, name) if name in ATTRIBUTES:
            yield ast.Attribute(value, ATTRIBUTES[name])


# Judging one mutant, in a process of its own


def _judge(mutant: Mutant, nodes: Sequence[str], answer: Connection) -> None:
    """Send what catches the mutant: a step, a test, or nothing ("")."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        try:
            _load(mutant)
            caught = (_failing_step(mutant) if mutant.symbolic else "") or _failing_test(nodes)
        except Exception as error:
            caught = f"does not load: {type(error).__name__}: {error}"
    answer.send(caught)


class _Source(SourceFileLoader):
    """Loads a mutant's source in place of the module's own."""

    def __init__(self, mutant: Mutant, path: str) -> None:
        super().__init__(mutant.module, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._mutant.source, self._mutant.name, "exec")


class _Finder(MetaPathFinder):
    """Finds the mutant wherever its module is imported, also from within the package that holds it."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None and spec.origin is not None
        spec.loader = _Source(self._mutant, spec.origin)
        return spec


def _load(mutant: Mutant) -> None:
    """Import the mutant in place of the module, so that nothing imported from now on knows the module itself."""
    for name, loaded in list(sys.modules.items()):
        if name.startswith("theory.") or Path(getattr(loaded, "__file__", None) or "").is_relative_to(TESTS):
            del sys.modules[name]
            package, _, attribute = name.rpartition(".")
            vars(sys.modules.get(package, loaded)).pop(attribute, None)
    sys.meta_path.insert(0, _Finder(mutant))
    import_module(mutant.module)


def _failing_step(mutant: Mutant) -> str:
    def too_late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_late)
    for claim in CLAIMS:
        for step in claim.steps() if claim.id in mutant.claims else ():
            if step.kind == "kernel":  # half a minute for each mutant; test_kernel.py changes formulas, too
                continue
            signal.alarm(STEP_SECONDS)
            failure = step.failure()
            signal.alarm(0)
            if failure is not None:
                return f"step: {step.equation}"
    return ""


class _FewExamples:
    """Plugin of pytest: it runs few examples of each property test, always the same, and keeps the first failure."""

    failed = ""

    def pytest_sessionstart(self) -> None:
        hypothesis.settings.register_profile(
            "mutants",
            max_examples=EXAMPLES,
            derandomize=True,
            deadline=None,
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],  # the first failure is enough
        )
        hypothesis.settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


def _failing_test(nodes: Sequence[str]) -> str:
    if not nodes:
        return ""
    plugin = _FewExamples()
    options = [
        "-x",
        "-q",
        "--assert=plain",
        "-p",
        "no:cacheprovider",
        "-c",
        str(TESTS.parent / "pyproject.toml"),
    ]
    status = pytest.main([*options, *(str(TESTS / node) for node in nodes)], [plugin])
    return "" if status == pytest.ExitCode.OK else f"test: {plugin.failed or status}"


def judge_all(chosen: Sequence[Mutant], workers: int) -> Iterator[tuple[Mutant, str]]:
    """Pairs of a mutant and what catches it, in the order in which they finish."""
    context, tests = multiprocessing.get_context("fork"), marked_tests(TESTS)
    waiting = list(reversed(chosen))
    running: dict[ForkProcess, tuple[Mutant, Connection, float]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            mutant = waiting.pop()
            nodes = list(dict.fromkeys(node for claim in mutant.claims for node in tests.get(claim, ())))
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_judge, args=(mutant, nodes, sender))
            process.start()
            sender.close()
            running[process] = mutant, receiver, time.monotonic() + MUTANT_SECONDS
        wait([process.sentinel for process in running], timeout=1)
        for process, (mutant, receiver, end) in list(running.items()):
            if process.is_alive() and time.monotonic() < end:
                continue
            caught = receiver.recv() if receiver.poll() else "does not end"
            process.kill()
            process.join()
            del running[process]
            yield mutant, caught


def main() -> None:
    parser = argparse.ArgumentParser(description="Change every formula and see that it is noticed.")
    parser.add_argument("--claim", help="mutants of this claim's formulas only")
    parser.add_argument(
        "--most", type=int, default=sys.maxsize, metavar="N", help="of a function, drawn at random"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    options = parser.parse_args()
    if options.claim not in (None, *(claim.id for claim in CLAIMS)):
        raise InputError(f"--claim {options.claim}: give one of {', '.join(claim.id for claim in CLAIMS)}")
    chosen = _choose(options.claim, options.most)
    started = time.monotonic()
    counts: dict[str, Counter[str]] = {}
    wrong = []
    for mutant, caught in judge_all(chosen, options.workers):
        kind = caught.partition(":")[0] or ("equivalent" if mutant.name in EQUIVALENT else "not caught")
        if kind in ("not caught", "does not load") or (caught and mutant.name in EQUIVALENT):
            wrong.append(mutant.name)
        counts.setdefault(mutant.claims[0], Counter())[kind] += 1
        print(f"{mutant.name}\n    {caught or EQUIVALENT.get(mutant.name, 'NOT CAUGHT')}", flush=True)
    print()
    for claim, count in counts.items():
        print(
            f"{claim}: {count.total()} mutants;", ", ".join(f"{n} {kind}" for kind, n in count.most_common())
        )
    total = sum(counts.values(), Counter[str]())
    print(
        f"all: {total.total()} mutants in {time.monotonic() - started:.0f} s;"
        f" {', '.join(f'{n} {kind}' for kind, n in total.most_common())}"
    )
    if wrong:
        print("not as it should be:", *wrong, sep="\n    ")
        sys.exit(1)


def _choose(claim: str | None, most: int) -> list[Mutant]:
    chosen = []
    for module in MODULES:
        by_function: dict[str, list[Mutant]] = {}
        for mutant in mutants(module):
            if claim is None or claim in mutant.claims:
                by_function.setdefault(mutant.name.partition(":")[0], []).append(mutant)
        for function, group in by_function.items():
            chosen += random.Random(function).sample(group, min(most, len(group)))
    return chosen


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main)
