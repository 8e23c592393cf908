"""Does training follow the written-out gradients and update rules, every seed on its own samples?"""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from direct import assert_same, direct_forward
from torch import Tensor

from synthetic.data import Task, sample, stream
from synthetic.model import Expert, ModelConfig, Routing, initialise
from synthetic.training import Loss, Optimiser, Trained, Training, train
from theory.errors import InputError
from theory.setting import Setting

SMALL = Task(d=6, n=4, frequencies=(0.7, 0.3))
CONFIG = ModelConfig((1, 1), 2, selected=2, init_std=0.5)


def small_training(**changes: Any) -> Training:
    return Training(batch=12, stop_margin=None, max_steps=3, learning_rate=0.1, **changes)


def written_out(task: Task, config: ModelConfig, training: Training, seed: int) -> dict[str, Tensor]:
    """The parameters after max_steps, by gradients of the direct forward pass and the published update rules."""
    model = initialise(task, config, (seed,), dtype=torch.float64)
    values = {**model.weights, "router": model.router}
    rates = {name: training.router_rate if name == "router" else training.learning_rate for name in values}
    first = {name: torch.zeros_like(value) for name, value in values.items()}
    second = {name: torch.zeros_like(value) for name, value in values.items()}
    rng = stream(seed, "train")
    for step in range(1, training.max_steps + 1):
        batch = sample(task, training.batch, rng)
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        watched = model.with_weights({name: leaves[name] for name in model.weights}, leaves["router"])
        margins = batch.labels * direct_forward(watched, 0, batch.tokens)
        if training.loss == "hinge":
            loss = sum(1 - margin for margin in margins if margin < 1) / training.batch
        else:
            loss = (1 + (-margins).exp()).log().mean()
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        for name, rate in rates.items():
            value, gradient, decay = values[name], gradients[name], training.weight_decay
            if training.optimiser == "adamw":  # Loshchilov & Hutter 2019, algorithm 2
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                direction = (first[name] / (1 - 0.9**step)) / (
                    (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
                )
                values[name] = value - rate * (direction + decay * value)
            else:
                kept = 0.9 if training.optimiser == "momentum" else 0.0
                first[name] = kept * first[name] + gradient + decay * value
                values[name] = value - rate * first[name]
    return values


def assert_follows(task: Task, config: ModelConfig, training: Training) -> None:
    trained = train(task, config, training, (2, 9), dtype=torch.float64)
    for number, seed in enumerate((2, 9)):
        expected = written_out(task, config, training, seed)
        result = {**trained.model.weights, "router": trained.model.router}
        for name, value in expected.items():
            assert_same(result[name][number], value[0])


@pytest.mark.parametrize("optimiser", get_args(Optimiser))
@pytest.mark.parametrize("loss", get_args(Loss))
@pytest.mark.parametrize(("router_rate", "weight_decay"), [(0.0, 0.0), (0.5, 0.1)])
def test_optimisers_and_losses(optimiser: Any, loss: Any, router_rate: float, weight_decay: float) -> None:
    training = small_training(
        optimiser=optimiser, loss=loss, router_rate=router_rate, weight_decay=weight_decay
    )
    assert_follows(SMALL, CONFIG, training)


@pytest.mark.parametrize("routing", get_args(Routing))
@pytest.mark.parametrize("expert", get_args(Expert))
def test_routings_and_experts(routing: Any, expert: Any) -> None:
    """Routers are random: specialised routers have equal scores, which rounding would order."""
    config = replace(CONFIG, routing=routing, expert=expert, router="random")
    task = replace(SMALL, label_noise=0.2, correlation=0.3, dictionary="rotated")
    assert_follows(task, config, small_training(router_rate=0.5))


def test_the_hinge_pulls_until_a_margin_of_one() -> None:
    """With one token an input, a margin rises by at most rate/m a step while below 1, and is then left alone."""
    task, config = Task(d=3, n=1, frequencies=(1.0,)), ModelConfig((1,), 4, selected=1)
    training = Training(learning_rate=0.2, batch=64, stop_margin=None, max_steps=200)
    margins = train(task, config, training, (0, 1, 2, 3), dtype=torch.float64).history.margins[-1].flatten()
    learnt = margins[margins > 0]  # elsewhere no neuron was active at the start
    assert len(learnt) >= 4
    assert (learnt >= 1).all() and (learnt < 1 + 0.2 / 4).all()


def test_a_seed_does_not_depend_on_those_beside_it() -> None:
    """Nor does a seed depend on when the others finish. The instance is the reference one, trained for fewer steps."""
    training = Training(learning_rate=1.0, batch=256, max_steps=40)
    together = train(Task(), ModelConfig(), training, (0, 1, 2), dtype=torch.float64)
    assert len(set(together.steps.tolist())) > 1
    for number in range(3):
        alone = train(Task(), ModelConfig(), training, (number,), dtype=torch.float64)
        assert alone.steps[0] == together.steps[number]
        assert alone.stopped[0] == together.stopped[number]
        assert_same(alone.model.weights["up"][0], together.model.weights["up"][number])
        assert_same(alone.history.norms[-1, 0], together.history.norms[-1, number])


def test_training_stops_at_the_first_batch_whose_frequent_margin_is_reached() -> None:
    training = Training(learning_rate=1.0, batch=256)
    trained = train(Task(), ModelConfig(), training, (0, 1), record_every=1, dtype=torch.float64)
    assert trained.stopped.all()
    for number, steps in enumerate(trained.steps.tolist()):
        rng = stream(number, "train")
        batches = [sample(Task(), 256, rng) for _ in range(steps + 1)]
        model = trained.model.seed(number)
        margins = batches[-1].labels * model.forward(batches[-1].tokens[None])[0]
        frequent = batches[-1].kinds == 0
        assert margins[frequent].mean() >= 0.9
        by_sign = trained.history.margins[: steps + 1, number, 0]
        ones = torch.stack([((batch.labels == 1) & (batch.kinds == 0)).sum() for batch in batches])
        others = torch.stack([((batch.labels == -1) & (batch.kinds == 0)).sum() for batch in batches])
        means = (by_sign[:, 0] * ones + by_sign[:, 1] * others) / (ones + others)
        assert_same(means[-1], margins[frequent].mean())
        assert (means[:-1] < 0.9).all()


def test_without_a_stop_margin_all_steps_are_made() -> None:
    trained = train(Task(), ModelConfig(), Training(batch=64, stop_margin=None, max_steps=7), (0, 1))
    assert trained.steps.tolist() == [7, 7] and not trained.stopped.any()
    never = train(Task(), ModelConfig(), Training(batch=64, stop_margin=50.0, max_steps=7), (0,))
    assert never.steps.tolist() == [7] and not never.stopped.any()


@pytest.fixture(scope="module")
def recorded() -> Trained:
    training = Training(learning_rate=1.0, batch=256, max_steps=40)
    task = Task(dictionary="rotated")
    return train(task, ModelConfig(), training, (0, 1), record_every=4, dtype=torch.float64)


def test_the_history_goes_from_the_initial_model_to_the_final_one(recorded: Trained) -> None:
    history, model = recorded.history, recorded.model
    initial = initialise(Task(dictionary="rotated"), ModelConfig(), (0, 1), dtype=torch.float64)
    for record, each in ((0, initial), (-1, model)):
        up = each.weights["up"]
        own = each.tokens[:, each.own_tokens]
        expected = torch.einsum("skmd,skd->skm", up, own)
        assert_same(history.own_weights[record], expected)
        assert_same(history.norms[record], up.norm(dim=-1))
    last = int(recorded.steps.max())
    assert history.steps.tolist() == sorted({*range(0, last + 1, 4), last})
    assert (history.norms >= history.own_weights.abs() - 1e-15).all()


def test_a_finished_seed_keeps_its_last_record(recorded: Trained) -> None:
    """The two seeds finish at different steps, neither of which is a multiple of record_every."""
    first = int(recorded.steps.argmin())
    after = recorded.history.steps >= recorded.steps[first]
    assert int(after.sum()) >= 2
    for values in (recorded.history.own_weights, recorded.history.margins):
        kept = values[after][:, first]
        assert torch.equal(kept, kept[-1:].expand_as(kept))


def test_how_often_is_recorded_changes_nothing(recorded: Trained) -> None:
    training = Training(learning_rate=1.0, batch=256, max_steps=40)
    again = train(
        Task(dictionary="rotated"), ModelConfig(), training, (0, 1), record_every=1000, dtype=torch.float64
    )
    assert again.history.steps.tolist() == [0, int(again.steps.max())]
    assert torch.equal(again.model.weights["up"], recorded.model.weights["up"])


def test_margins_of_absent_kinds_are_unknown() -> None:
    task = Task(frequencies=(1 - 1e-9, 1e-9))
    trained = train(task, ModelConfig(), Training(batch=32, max_steps=2), (0,))
    assert trained.history.margins[:, 0, 1].isnan().all()
    assert trained.history.margins[:, 0, 0].isfinite().all()


def test_frozen_routers_stay_and_trained_ones_move() -> None:
    initial = initialise(Task(), ModelConfig(), (0,))
    frozen = train(Task(), ModelConfig(), Training(batch=64, max_steps=5, weight_decay=0.1), (0,))
    moved = train(Task(), ModelConfig(), Training(batch=64, max_steps=5, router_rate=20.0), (0,))
    assert torch.equal(frozen.model.router, initial.router)
    assert not torch.equal(moved.model.router, initial.router)
    assert not any(value.requires_grad for value in (moved.model.router, *moved.model.weights.values()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("optimiser", get_args(Optimiser))
def test_cuda_trains_the_same_model(optimiser: Any) -> None:
    training = small_training(optimiser=optimiser, router_rate=0.5)
    here = train(SMALL, CONFIG, training, (0, 1), dtype=torch.float64)
    there = train(SMALL, CONFIG, training, (0, 1), dtype=torch.float64, device="cuda")
    assert there.model.router.is_cuda
    assert_same(there.model.weights["up"].cpu(), here.model.weights["up"])
    assert_same(there.history.own_weights, here.history.own_weights)


def test_settings_give_the_reference_training() -> None:
    assert Training.of(Setting()) == Training()
    assert Training.of(Setting(eta=0.05)) == Training(learning_rate=0.05)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("optimiser", "adam", "sgd, momentum, adamw"),
        ("loss", "squared", "hinge, logistic"),
        ("learning_rate", 0.0, "above 0"),
        ("router_rate", -1.0, "at least 0"),
        ("weight_decay", float("inf"), "at least 0"),
        ("batch", 0, "at least 1"),
        ("stop_margin", 0.0, "above 0, or None"),
        ("max_steps", 1.5, "at least 1"),
    ],
)
def test_bad_training_names_the_field_and_what_is_allowed(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(InputError, match=rf"training\.{field} .*{allowed}"):
        replace(Training(), **{field: value})


def test_other_bad_input() -> None:
    for bad in ((), (1, 1)):
        with pytest.raises(InputError, match=r"seeds is .*: give at least one, each once"):
            train(Task(), ModelConfig(), Training(), bad)
    with pytest.raises(InputError, match="record_every is 0: give a whole number of at least 1"):
        train(Task(), ModelConfig(), Training(), (0,), record_every=0)
