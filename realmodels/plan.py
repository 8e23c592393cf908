"""Which experts and dense modules should be digital, for a model, its hardware and a budget? What will that cost?

1. Every expert and every dense linear layer has an expected damage, what its noise should add to the loss [(D),
   (D-dense); realmodels.damage], and a number of parameters.
2. The closed forms have the order of a loss increase, and err by kind of module: they take squares of the gradient for
   second derivatives, and know no converters. So each kind is put on analog hardware alone, all others digital, on
   calibration text, and its closed forms are multiplied by measured/closed. Where the interval of what was measured
   contains 0, nothing is multiplied.
3. Damages add up while they are small [(D-sum)]. Beyond that the increase is taken to be S + b S^2, S being the sum of
   damages: pairs of modules interact in proportion to the product of their damages. b is such that everything analog,
   measured on the same text and noise, comes out right.
4. Among all choices the best is found exactly [realmodels.items]. A budget on the loss asks for the fewest parameters.
   b changes no ranking, as S + b S^2 rises with S. A budget on accuracy is one on the loss: how
   accuracy falls with it was measured on questions of tasks, with everything analog [realmodels.decline].
5. The choice, and the paper's, are measured on held-out text, and on questions of tasks that nothing was chosen by,
   under the same noise.

A step of 2 has noise of seeds of its own, and every draw comes with its mirror image, so that what is of first order in
the noise cancels.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from realmodels.budgets import Budgets, budgets_of, count_of
from realmodels.calibrate import calibrate
from realmodels.cost import Machine, Shape
from realmodels.damage import dense_damage, expected_damage
from realmodels.decline import NATS, Decline, Drop
from realmodels.deploy import Chip
from realmodels.evaluate import BLOCK_TOKENS, TokenBlocks, block_results, token_blocks
from realmodels.items import MAXNN, Choice, Items, Kind, Outcome
from realmodels.model import Model, require_model
from realmodels.plan_file import THE_PLAN, Dense, Plan, Table
from realmodels.progress import Advance, progress
from realmodels.scores import parameters, scores
from realmodels.statistics import routing
from realmodels.tasks import SHARES, TasksAccuracy, evaluate_tasks, over_tasks, readable_tasks
from realmodels.text import shared_paragraphs, text_hash
from theory import paper
from theory.errors import InputError, did_you_mean, shown
from theory.evidence import grouped, mean_interval, two_way_interval
from theory.hardware import LARGEST_FACTOR, Hardware, require_hardware
from theory.placement import STRATEGIES, Placement, Scores, place
from theory.separation import evaluation_seeds, seed
from theory.strict_json import is_whole

DRAWS, BLOCKS, TOKENS = 8, 32, BLOCK_TOKENS // 2  # noise draws, blocks of text, predictions in a block
QUESTIONS = 100  # of each task
EXPECTED_DAMAGE = "expected_damage"
# Strategies that rank all experts by a score.
SCORES = (
    EXPECTED_DAMAGE,
    *(each for each in STRATEGIES if each not in ("balanced_maxnn", "random", "minnn", "none", "all")),
)
# Work in tokens that a digital model reads in the same time, as measured on tiny-olmoe on one core.
_READING, _CALIBRATING, _CLOSED_FORMS, _ROUTING = 140_000, 70_000, 40_000, 20_000
_PASS = BLOCKS * TOKENS
_QUESTION = 250  # tokens, of a question with its choices
# Of the decline of accuracy: so many times as many questions, from other shares, one for each noise draw; and noise at
# most so many times as large as planned for.
_MORE_QUESTIONS, _MORE_NOISE = 4, 10.0
_CHOOSING = range(SHARES // 2)
_MEASURING = range(SHARES // 2, SHARES)
_EVERYTHING = "everything"


def plan(
    model: Model,
    hardware: Hardware,
    *,
    texts: Sequence[str] | None = None,
    calibration: Sequence[str] | None = None,
    draws: int = DRAWS,
    first_seed: int | None = None,
    batch: int = paper.TABLE_2_BATCH.value,
    machine: Machine | None = None,
    score: str | Scores = EXPECTED_DAMAGE,
    tasks: Sequence[str] = (),
    questions: int = QUESTIONS,
    **budgets: Any,
) -> Plan:
    """The placement with the least expected loss within the budgets, or the cheapest within that of the loss.

    texts: held-out documents that losses are measured on; default: ours.
    calibration: documents for ranges, scores and corrections, none of which is in `texts`; default: ours.
    draws, first_seed: noise draws of what is measured, at least 2.
    batch, machine: as `realmodels.cost.cost` takes them.
    score: what experts are ranked by: one of SCORES, or any (layers, experts) tensor. Predictions are of the expected
        damage all the same.
    tasks, questions: tasks to measure accuracy on [realmodels.tasks.evaluate_tasks], and how many questions of each;
        _MORE_QUESTIONS times as many others are for predictions. A budget on accuracy needs them.
    budgets: fields of Budgets.
    InputError if the budgets cannot be met together; the line says what can be.
    """
    wanted = budgets_of(budgets)
    require_model(model)
    require_hardware(hardware)
    model.require_digital()
    if not hardware.c:
        raise InputError(
            "hardware.c is 0: without programming noise there is nothing to choose by; give c above 0"
        )
    _of_the_model(model, wanted)
    seeds = evaluation_seeds(draws, DRAWS, first_seed, "noise draws")
    named = _tasks(model, wanted, tasks, questions)
    kinds = {kind: names for kind, names in model.map.dense.items() if names}
    compared = 1 + len(paper.DIGITAL_EXPERTS.value)
    passes = 2 * (len(kinds) + 2) + draws * compared
    work = _READING + _CALIBRATING + _CLOSED_FORMS + _ROUTING + passes * _PASS
    if named:
        asked = len(named) * questions * _QUESTION
        work += 2 * _PASS + (3 * _MORE_QUESTIONS + 1 + draws * compared) * asked
    with progress(work) as advance:
        advance("reading text", 0)
        own_texts = model.texts("evaluation") if texts is None else texts
        known = model.texts("calibration") if calibration is None else calibration
        if (texts is not None or calibration is not None) and (shared := shared_paragraphs(known, own_texts)):
            raise InputError(
                f"calibration: {shared} of its paragraphs are in the evaluation text: leave them out"
            )
        ranking = _ranking(model, score, known)
        blocks = blocks_of(model, own_texts, "evaluation")
        digital, _ = block_results(model.network, blocks.tokens)
        advance("reading text", _READING)
        items, found_kinds = items_of(model, hardware, known, batch, machine, advance)
        items = replace(items, ranking=ranking)
        decline = decline_of(items, hardware, known, named, questions, advance) if named else None
        chosen = items.best(wanted, float(digital.mean()), decline)
        maxnn = scores(model)
        placements = {THE_PLAN: chosen} | {
            f"dense + {100 * fraction:g} % {MAXNN}": place(maxnn, fraction)
            for fraction in paper.DIGITAL_EXPERTS.value
        }
        measured = measurements(
            model, hardware, items.ranges, placements, seeds, blocks, digital, advance, named, questions
        )
    bare = items.uncorrected(found_kinds)
    outcomes = {
        name: measured[name].of(replace(items.outcome(each), closed=bare.outcome(each).predicted), decline)
        for name, each in placements.items()
    }
    name = score if isinstance(score, str) else "own score"
    ranked_by = name.replace("_", " ")
    return Plan(
        model=Path(model.name).name,
        weights_hash=model.weights_hash,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=hardware,
        budgets=wanted,
        texts={"evaluation": text_hash(own_texts), "calibration": text_hash(known)},
        draws=draws,
        batch=batch,
        parameters=items.total,
        digital_loss=float(digital.mean()),
        score=ranked_by,
        ranking=_rows(items.experts if ranking is None else ranking),
        decline=decline,
        damage=_rows(items.experts),
        maxnn=_rows(maxnn),
        load=_rows(items.load),
        dense={
            name: Dense(
                kind, items.sizes[name], items.dense.get(name, 0.0), name not in chosen.analog_modules
            )
            for kind, names in kinds.items()
            for name in names
        },
        kinds=found_kinds,
        interaction=items.interaction,
        outcomes=outcomes,
        frontiers=items.frontiers(ranked_by, maxnn),
    )


def _of_the_model(model: Model, budgets: Budgets) -> None:
    """InputError, before anything is computed, for more experts or parameters than the model has."""
    sizes = {
        "digital_experts": sum(model.map.num_experts),
        "digital_parameters": sum(each.numel() for each in model.network.parameters()),
    }
    for name, total in sizes.items():
        if (value := getattr(budgets, name)) is not None:
            count_of(name, value, total)


def _tasks(model: Model, budgets: Budgets, tasks: Sequence[str], questions: int) -> tuple[str, ...]:
    if not tasks:
        if budgets.accuracy_drop is not None:
            raise InputError(
                "budget accuracy_drop: of which tasks? Give tasks, such as paper or continuation"
            )
        return ()
    if not is_whole(questions) or questions < 2 * DRAWS:
        raise InputError(f"questions is {shown(questions)}: give a whole number of at least {2 * DRAWS}")
    return readable_tasks(model, tasks, questions, _MEASURING)


def _ranking(model: Model, score: str | Scores, texts: Sequence[str]) -> NDArray[np.float64] | None:
    """(layers, experts) what experts are ranked by, None for their expected damage."""
    if isinstance(score, str):
        if score not in SCORES:
            raise InputError(
                f"score is {shown(score)}: give one of {', '.join(SCORES)}{did_you_mean(score, SCORES)}"
            )
        return None if score == EXPECTED_DAMAGE else scores(model, score, texts).numpy()  # type: ignore[arg-type]
    wanted = len(model.map.num_experts), model.map.num_experts[0]
    numbers = (
        f"give finite numbers of shape {wanted}, one for each expert of each layer, in the range of fp32"
    )
    try:
        found = torch.as_tensor(score).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"score is {shown(score)}: {numbers}") from None
    if found.shape != wanted or found.is_complex() or not found.float().isfinite().all():
        raise InputError(f"score has the shape {tuple(found.shape)} and the type {found.dtype}: {numbers}")
    return found.double().numpy()


def _rows(table: Any) -> Table:
    return tuple(map(tuple, np.asarray(table).tolist()))


# What there is to choose from


def items_of(
    model: Model,
    hardware: Hardware,
    texts: Sequence[str],
    batch: int,
    machine: Machine | None,
    advance: Advance,
) -> tuple[Items, dict[str, Kind]]:
    """What there is to choose from, with damages that were corrected on calibration text."""
    shape = Shape.of(model)
    sizes = parameters(model).unique().tolist()
    if len(sizes) != 1:
        raise InputError(
            f"{model.name} has experts of {' and '.join(map(str, sizes))} parameters: plan needs experts of one size;"
            " use theory.placement.knapsack"
        )
    advance("converter ranges", 0)
    searched = sum(len(names) for names in model.map.dense.values()) + 2 * len(model.map.moe_layers)

    def each(_: str, search: Callable[[], Any]) -> Any:
        found = search()
        advance("converter ranges", _CALIBRATING / searched)
        return found

    ranges = calibrate(model, texts, hardware, each=each)
    advance("expected damage", 0)
    experts = expected_damage(model, texts, hardware, gradient=True).numpy()
    advance("expected damage", _CLOSED_FORMS * 2 / 3)
    dense = {
        name: damage
        for name, damage in dense_damage(model, texts, hardware).items()
        if f"{name}.weight" in ranges.layers  # a network may have parts that it does not call
    }
    advance("expected damage", _CLOSED_FORMS / 3)
    kinds = {
        kind: own
        for kind, names in model.map.dense.items()
        if (own := tuple(name for name in names if name in dense))
    }
    closed = {"experts": float(experts.sum())} | {
        kind: sum(dense[name] for name in names) for kind, names in kinds.items()
    }
    measured = _alone(model, hardware, ranges, kinds, texts, advance)
    found = {kind: _corrected(closed[kind], measured[kind]) for kind in closed}
    advance("load of experts", 0)
    load = routing(model, texts, BLOCKS).frequency.numpy()
    advance("load of experts", _ROUTING)
    network = model.network
    linears = {name: network.get_parameter(f"{name}.weight").numel() for name in model.map.linears}
    uses = Counter(id(each) for _, each in network.named_parameters(remove_duplicate=False))
    items = Items(
        model=model,
        shape=replace(shape, dense_parameters=sum(linears[name] for name in dense)),
        ranges=ranges,
        experts=experts * found["experts"].factor,
        load=load,
        size=sizes[0],
        dense={name: dense[name] * found[kind].factor for kind, names in kinds.items() for name in names},
        sizes=linears,
        total=sum(each.numel() for each in network.parameters()),
        batch=batch,
        machine=machine,
        tied=frozenset(name for name in dense if uses[id(network.get_parameter(f"{name}.weight"))] > 1),
    )
    together = float(np.mean(measured[_EVERYTHING]))
    return replace(items, interaction=_interaction(items.everything, together)), found


def _alone(
    model: Model,
    hardware: Hardware,
    ranges: Any,
    kinds: Mapping[str, Sequence[str]],
    texts: Sequence[str],
    advance: Advance,
) -> dict[str, list[float]]:
    """What each kind costs alone, and everything together, nats per token: one number for each noise draw.

    Each draw, with its mirror image, reads blocks of calibration text of its own.
    """
    sizes = model.map.num_experts
    every, none = tuple(tuple(range(size)) for size in sizes), ((),) * len(sizes)
    placements = {kind: Placement(sizes, every, tuple(names)) for kind, names in kinds.items()}
    placements["experts"] = Placement(sizes, none)
    placements[_EVERYTHING] = Placement(
        sizes, none, tuple(name for names in kinds.values() for name in names)
    )
    parts = _parts(model, texts)
    found: dict[str, list[float]] = {kind: [] for kind in placements}
    for index, part in enumerate(parts):
        digital, _ = block_results(model.network, part)
        each = dict.fromkeys(placements, 0.0)
        for chip in _both_signs(model, hardware, ranges, index):
            for kind, placement in placements.items():
                with chip.placed(placement):
                    losses, _ = block_results(model.network, part)
                    advance(f"noise on {kind}", _PASS / len(parts))
                each[kind] += float((losses - digital).mean()) / 2
        for kind, increase in each.items():
            found[kind].append(_finite(model, increase))
    return found


def _parts(model: Model, texts: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """Blocks of calibration text for each of at most DRAWS noise draws."""
    tokens = blocks_of(model, texts, "calibration").tokens
    return tokens.tensor_split(min(DRAWS, len(tokens)))


def _both_signs(model: Model, hardware: Hardware, ranges: Any, index: int) -> Iterator[Chip]:
    """A chip, and the one whose noise is its mirror image."""
    for mirrored in (False, True):
        yield Chip(model, hardware, ranges, seed("search", index), mirrored=mirrored)


def decline_of(
    items: Items,
    hardware: Hardware,
    texts: Sequence[str],
    tasks: tuple[str, ...],
    questions: int,
    advance: Advance,
) -> Decline:
    """How accuracy falls with the loss: both measured with everything analog, under noise that costs about NATS.

    Each noise draw, with its mirror image, reads blocks of calibration text and questions of its own.
    """
    model, every = items.model, items.everything
    times = math.sqrt(NATS / every) if every > 0 else _MORE_NOISE
    noisier = replace(hardware, c=min(hardware.c * min(times, _MORE_NOISE), LARGEST_FACTOR))
    placement = items.placement(Choice(0, (), every))
    parts = _parts(model, texts)
    limit = max(2, _MORE_QUESTIONS * questions // len(parts))

    def ask(index: int) -> TasksAccuracy:
        found = evaluate_tasks(model, tasks, limit, shares=[_CHOOSING[index]])
        advance("tasks", len(tasks) * _MORE_QUESTIONS * questions * _QUESTION / len(parts))
        return found

    known, increases, lost = list[TasksAccuracy](), list[float](), list[float]()
    for index, part in enumerate(parts):
        digital, _ = block_results(model.network, part)
        known.append(ask(index))
        noisy, right = [], []
        for chip in _both_signs(model, noisier, items.ranges, DRAWS + index):
            with chip.placed(placement):
                losses, _ = block_results(model.network, part)
                advance("tasks", _PASS / len(parts))
                noisy.append(_finite(model, float((losses - digital).mean())))
                right.append(ask(index).accuracy)
        increases.append(float(np.mean(noisy)))
        lost.append(known[-1].accuracy - float(np.mean(right)))
    return Decline(
        tasks=tasks,
        questions=questions,
        chance=float(np.mean([each.chance for each in known])),
        digital=float(np.mean([each.accuracy for each in known])),
        c=noisier.c,
        increase=float(np.mean(increases)),
        lost=float(np.mean(lost)),
        interval=mean_interval(lost),
    )


def _corrected(closed: float, measured: Sequence[float]) -> Kind:
    """A kind with the factor of its closed forms: 1 where the measured increase may as well be 0."""
    mean, interval = float(np.mean(measured)), mean_interval(measured)
    factor = mean / closed if closed > 0 and interval[0] > 0 else 1.0
    return Kind(closed, mean, interval, factor)


def _interaction(total: float, measured: float) -> float:
    """b of S + b S^2, so that the sum of all damages gives what everything together was measured to cost.

    Not so far below 0 that the increase would fall with S.
    """
    if total <= 0:
        return 0.0
    return max((measured - total) / total**2, -1 / (2 * total))


@dataclass(frozen=True)
class Measured:
    """A placement, measured.

    increases: (draws, documents) of the loss, nats per token.
    drops: (draws, documents or questions) of the mean accuracy on tasks, if there are any.
    """

    increases: NDArray[np.float64]
    drops: NDArray[np.float64] | None

    def of(self, outcome: Outcome, decline: Decline | None) -> Outcome:
        """The outcome with what was measured."""
        drop = None
        if self.drops is not None and decline is not None:
            x = outcome.predicted
            drop = Drop(
                decline.drop(x), decline.expected(x), float(self.drops.mean()), two_way_interval(self.drops)
            )
        mean, interval = float(self.increases.mean()), two_way_interval(self.increases)
        return replace(outcome, measured=mean, interval=interval, accuracy=drop)


def measurements(
    model: Model,
    hardware: Hardware,
    ranges: Any,
    placements: Mapping[str, Placement],
    seeds: Sequence[int],
    blocks: TokenBlocks,
    digital: torch.Tensor,
    advance: Advance,
    tasks: tuple[str, ...] = (),
    questions: int = QUESTIONS,
) -> dict[str, Measured]:
    """What every placement costs under the same noise; digital: (blocks,) losses of the digital model."""

    def ask() -> list[dict[str, Any]]:
        found = evaluate_tasks(model, tasks, questions, shares=_MEASURING).as_record() if tasks else None
        advance("tasks", len(tasks) * questions * _QUESTION)
        return [found] if found else []

    right = ask()
    losses: dict[str, list[Any]] = {name: [] for name in placements}
    answers: dict[str, list[Any]] = {name: [] for name in placements}
    for each in seeds:
        chip = Chip(model, hardware, ranges, each)
        for name, placement in placements.items():
            with chip.placed(placement):
                found, _ = block_results(model.network, blocks.tokens)
                _finite(model, float(found.mean()))
                losses[name].append((found - digital).numpy())
                advance("measuring", _PASS)
                answers[name] += ask()
    return {
        name: Measured(
            grouped(np.stack(losses[name]), blocks.documents),
            over_tasks(right) - over_tasks(answers[name]) if tasks else None,
        )
        for name in placements
    }


def blocks_of(model: Model, texts: Sequence[str], purpose: Any) -> TokenBlocks:
    return token_blocks(model, texts, min(TOKENS, model.context), BLOCKS, purpose=purpose)


def _finite(model: Model, loss: float) -> float:
    if not math.isfinite(loss):
        raise InputError(f"the loss of {model.name} is {loss}: check its weights and the hardware's settings")
    return loss
