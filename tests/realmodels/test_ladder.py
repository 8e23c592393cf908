"""The ladder: exact numbers, rates that follow the width, models that processes share, a host that trains them all."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_recipes import DEEPSEEK_OF_LADDER as DEEPSEEK
from small_recipes import OF_LADDER as TINY
from transformers import AutoModelForCausalLM, AutoTokenizer

from realmodels import load, pretrain
from realmodels.pretrain import Recipe, TokenFolder, Training, experts, host, ladder, runs
from realmodels.pretrain.__main__ import main
from realmodels.pretrain.host import Host, Job, jobs
from realmodels.pretrain.ladder import LADDER, Rung
from realmodels.pretrain.processes import ALONE, Group
from realmodels.pretrain.recipe import entries, read_recipe
from realmodels.pretrain.size import size_of
from realmodels.pretrain.training import cast_parameters, layer_pass, losses, next_token_loss
from realmodels.text import prose
from theory.errors import InputError

CPU = torch.device("cpu")


def texts(folder: Path, documents: int = 150) -> Path:
    """Documents of a few words, each with its number, so that it can be told."""
    generator = np.random.default_rng(0)
    words = ["noise", "on", "analog", "tiles", "hurts", "dense", "modules", "more", "than", "most", "experts"]
    folder.mkdir(exist_ok=True)
    for split, count in {"training": documents, "calibration": 6, "evaluation": 6}.items():
        found = [f"{number} {' '.join(generator.choice(words, 30))}" for number in range(count)]
        (folder / f"{split}.txt").write_text("\0".join(found))
    return folder


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenFolder:
    folder = texts(tmp_path_factory.mktemp("texts"))
    pretrain.tokenize(folder, folder / "tokens", TINY.vocabulary, pieces=3)
    return TokenFolder.open(folder / "tokens")


# Passes and processes.


def differing(a: Training, b: Training) -> float:
    """The largest difference of two models' weights over the largest weight."""
    difference = (a.flat.weights - b.flat.weights).abs().max()
    return float(difference / a.flat.weights.abs().max())


def trained(recipe: Recipe, stream: np.ndarray, steps: int, group: Group = ALONE) -> Training:
    training = Training(recipe, stream, CPU, False, group)
    for _ in range(steps):
        training.advance()
    return training


def test_passes_of_a_step_add_up(stream: np.ndarray) -> None:
    """A step of several passes is the step on all tokens, but for the balance loss, which is of one pass."""
    for balance, alike in ((0.0, True), (5.0, False)):
        recipe = replace(TINY, balance=balance)
        several, one = (trained(each, stream, 1) for each in (recipe, replace(recipe, pass_tokens=0)))
        assert (recipe.passes, one.recipe.passes) == (4, 1)
        close = torch.allclose(several.flat.gradient, one.flat.gradient, rtol=1e-3, atol=1e-6)
        assert close == alike


def test_processes_share_a_step(stream: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, one after the other: the sum of their gradients is that of one process."""
    parts: list[list[torch.Tensor]] = []
    monkeypatch.setattr(Group, "sum", lambda self, *tensors: parts.append([each.clone() for each in tensors]))
    for group in (Group(0, 2), Group(1, 2), ALONE):
        trained(TINY, stream, 1, group)
    for first, second, whole in zip(*parts, strict=True):
        torch.testing.assert_close(first + second, whole, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="a step has 4 passes, batch_tokens / pass_tokens.*3 processes"):
        Training(TINY, stream, CPU, False, Group(0, 3))


@pytest.mark.slow
def test_two_processes_train_the_model_of_one(tokens: TokenFolder, tmp_path: Path) -> None:
    recipe = replace(TINY, steps=6)
    pretrain.train(tokens, tmp_path / "one", recipe, CPU)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = ["realmodels.pretrain", "train", str(tokens.folder), str(tmp_path / "two"), *entries(recipe)]
    subprocess.run([*torchrun, *command, "--device", "cpu"], check=True, capture_output=True, text=True)
    one, two = (load_file(tmp_path / each / "model.safetensors") for each in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weight in one.items():  # in bf16
        torch.testing.assert_close(two[name].float(), weight.float(), rtol=0.02, atol=1e-4)
    logs = [log(tmp_path / each) for each in ("one", "two")]
    for ours, theirs in zip(*logs, strict=True):
        assert ours["training_loss"] == pytest.approx(theirs["training_loss"], rel=1e-4)


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_of_limited_time_goes_on_to_the_same_bits(
    tokens: TokenFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "ENTRIES_PER_RUN", 4)
    assert pretrain.train(tokens, tmp_path / "whole", TINY, CPU)
    for entries_so_far in (1, 2):
        assert not pretrain.train(tokens, tmp_path / "parts", TINY, CPU, until=0.0)
        assert len(log(tmp_path / "parts")) == entries_so_far
    other = TokenFolder(tmp_path / "other", tokens.vocabulary, tokens.sizes)
    shutil.copytree(tokens.folder, other.folder)
    (other.folder / "training-002.xz").unlink()
    with pytest.raises(InputError, match="trained on other text"):
        pretrain.train(other, tmp_path / "parts", TINY, CPU)
    assert pretrain.train(tokens, tmp_path / "parts", TINY, CPU, evaluated=["evaluation", "prose"], rate=1e9)
    whole, parts = ((tmp_path / each / "model.safetensors").read_bytes() for each in ("whole", "parts"))
    assert whole == parts
    found = json.loads((tmp_path / "parts" / "held_out.json").read_text())
    assert found["recipe_sha256"] == TINY.hash() != replace(TINY, seed=1).hash()
    assert found["text"]["tokens"] == len(tokens.stream("training"))
    assert 0 < found["evaluation_loss"] < found["prose_loss"]
    last = log(tmp_path / "parts")[-1]
    share = size_of(TINY).flops_per_token * last["tokens_per_second"] / 1e9
    assert last["share_of_matrix_products"] == pytest.approx(share)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of dynamo itself
@pytest.mark.parametrize("recipe", [TINY, DEEPSEEK], ids=lambda recipe: recipe.family)
def test_layers_are_compiled_once_for_all(recipe: Recipe) -> None:
    """With the products of experts that a GPU uses: as many graphs as kinds of layers, none of them broken."""
    from torch._dynamo.testing import CompileCounter

    network: Any = AutoModelForCausalLM.from_config(replace(recipe, layers=4).model_config())
    crops = torch.randint(recipe.vocabulary, (4, recipe.context + 1))
    cast_parameters(network, torch.bfloat16)  # as on a GPU; others cannot be compiled
    wanted, *_ = losses(network, crops)
    network.set_experts_implementation(experts.NAME)
    torch._dynamo.reset()
    counters: list[Any] = [CompileCounter(), CompileCounter()]
    layer = torch.compile(layer_pass, backend=counters[0], fullgraph=True)
    loss = torch.compile(next_token_loss, backend=counters[1], fullgraph=True)
    for _ in range(2):
        found, balance, _ = losses(network, crops, layer, loss)
        (found + balance).backward()
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0)
    assert [counter.frame_count for counter in counters] == [1 + recipe.dense_layers, 1]


# Tokens.


def decoded(tokens: TokenFolder, split: str) -> list[str]:
    tokenizer: Any = AutoTokenizer.from_pretrained(tokens.folder)
    return tokenizer.decode(tokens.stream(split)).split(pretrain.END_OF_TEXT)[1:]


def test_pieces_are_a_partition_of_the_documents(tokens: TokenFolder, tmp_path: Path) -> None:
    wanted = (tokens.folder.parent / "training.txt").read_text().split("\0")
    found = decoded(tokens, "training")
    assert sorted(found) == sorted(wanted) and found != wanted
    assert sorted(path.name for path in tokens.folder.glob("training-*")) == [
        f"training-{number:03}.xz" for number in range(3)
    ]
    some = TokenFolder(tmp_path, tokens.vocabulary, tokens.sizes)
    for name in ("training-002.xz", "training-000.xz", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokens.folder / name, tmp_path)
    part = decoded(some, "training")
    assert len(part) == 100 and part == found[:50] + found[100:]
    numbers = [int(document.split()[0]) for document in found[:50]]
    assert min(numbers) < 20 and max(numbers) > 130  # of all parts of the text


def test_a_share_of_the_documents_is_chosen_at_random(tmp_path: Path) -> None:
    folder, chosen = texts(tmp_path), []
    for seed in (0, 0, 1):
        pretrain.tokenize(folder, tmp_path / "tokens", 300, share=0.2, pieces=2, seed=seed)
        opened = TokenFolder.open(tmp_path / "tokens")
        chosen.append({document.split()[0] for document in decoded(opened, "training")})
        assert opened.sizes["training"]["tokens"] == len(opened.stream("training"))
    assert len(chosen[0]) == 30 and chosen[0] == chosen[1] != chosen[2]
    pretrain.tokenize(folder, tmp_path / "tokens", 300)  # no piece of another tokenizer is left
    assert len(list((tmp_path / "tokens").glob("training-*"))) == 1


def test_prose_is_a_second_evaluation_text(tokens: TokenFolder) -> None:
    assert decoded(tokens, "prose") == list(prose())
    assert tokens.sizes["prose"]["bytes"] == sum(len(each.encode()) for each in prose())


def test_bad_tokens_are_refused(tokens: TokenFolder, tmp_path: Path) -> None:
    folder = texts(tmp_path)
    for options, message in (
        ({"share": 0.0}, "the share of the documents is 0.0; give more than 0, and at most 1"),
        ({"share": 1.5}, "the share of the documents is 1.5"),
        ({"pieces": 0}, "the number of pieces is 0; give 1 to 150"),
        ({"pieces": 200}, "the number of pieces is 200; give 1 to 150"),
    ):
        with pytest.raises(InputError, match=message):
            pretrain.tokenize(folder, tmp_path / "tokens", 300, **options)
    broken = TokenFolder(tmp_path, 300, {})
    with pytest.raises(InputError, match=r"has no training-000\.xz"):
        broken.stream("training")
    (tmp_path / "training-000.xz").write_bytes(b"no xz")
    with pytest.raises(InputError, match=r"damaged training-\*\.xz"):
        broken.stream("training")


# The host.


def test_jobs_are_the_ladders_largest_first(tmp_path: Path) -> None:
    found = jobs(tmp_path)
    assert len(found) == sum(rung.seeds for rung in LADDER.values()) == 44
    assert [job.folder.name for job in found[:3]] == ["olmoe-1b-0", "olmoe-256m-0", "olmoe-256m-1"]
    assert [job.together for job in found] == [True] * 3 + [False] * 41
    one = jobs(tmp_path, ["olmoe-4m", "olmoe-4m"], seeds=[7, 7])
    assert one == [Job(tmp_path / "ladder" / "olmoe-4m-7", replace(LADDER["olmoe-4m"].recipe, seed=7))]
    trials = jobs(tmp_path, ["olmoe-16m-muon", "olmoe-4m"], seeds=[0], rates=[0.01, 0.002])
    assert [job.folder for job in trials] == [
        tmp_path / "trials" / name
        for name in ("olmoe-16m-muon-0.01-0", "olmoe-16m-muon-0.002-0", "olmoe-4m-0.01-0", "olmoe-4m-0.002-0")
    ]
    given = [(job.recipe.matrix_learning_rate, job.recipe.learning_rate) for job in trials]
    kept = ladder.BASE.learning_rate
    assert given == [(0.01, kept), (0.002, kept), (0.01, 0.01), (0.002, 0.002)]
    with pytest.raises(InputError, match="the ladder has no model 'olmoe'; give some of olmoe-4m, "):
        jobs(tmp_path, ["olmoe"])


def test_commands_say_the_whole_recipe(tmp_path: Path) -> None:
    large, small = (Job(tmp_path / name, LADDER[name].recipe) for name in ("olmoe-256m", "olmoe-4m"))
    host = Host(gpus=2, side_by_side=6, compiled=True)
    command = host.command(small, tmp_path / "tokens", "--minutes", "3")
    assert command[1:4] == ["-m", "realmodels.pretrain", "train"] and {"--compile", "cuda"} < set(command)
    assert read_recipe(Recipe, None, [each for each in command if "=" in each]) == small.recipe
    assert "--nproc-per-node=2" in host.command(large, tmp_path / "tokens")
    assert "torch.distributed.run" not in Host(1, 6, True).command(large, tmp_path / "tokens")


class Process:
    """A training that ends when it is asked the second time. running: those that were not."""

    running: ClassVar[list["Process"]] = []

    def __init__(self, job: Job, gpus: list[int]) -> None:
        self.job, self.gpus, self.asked, self.returncode = job, gpus, 0, 0
        Process.running.append(self)
        in_use = [gpu for each in Process.running for gpu in each.gpus]
        assert all(in_use.count(gpu) <= 2 for gpu in range(2))
        assert len(Process.running) == 1 or not any(each.job.together for each in Process.running)

    def poll(self) -> int | None:
        self.asked += 1
        if self.asked < 2:
            return None
        Process.running.remove(self)
        self.job.folder.mkdir(parents=True)
        (self.job.folder / "model.safetensors").touch()
        return 0


def test_a_large_model_has_all_gpus_and_others_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(host, "matmul_rate", lambda device: 1.0)
    monkeypatch.setattr(Job, "told", lambda job, status: f"{job.folder.name} {status}")
    started: list[tuple[str, list[int]]] = []

    def start(self: Host, job: Job, gpus: list[int], command: list[str]) -> Process:
        started.append((job.folder.name, sorted(gpus)))
        assert command[-1] != "--minutes"
        return Process(job, gpus)

    monkeypatch.setattr(Host, "start", start)
    chosen = jobs(tmp_path, ["olmoe-256m", "olmoe-64m", "olmoe-4m"])
    machine = Host(gpus=2, side_by_side=2, compiled=False)
    assert not machine.train(chosen, tmp_path / "tokens", minutes=0.0) and not started
    assert machine.train(chosen, tmp_path / "tokens")
    assert [name for name, _ in started] == [job.folder.name for job in chosen]
    assert started[:2] == [("olmoe-256m-0", [0, 0, 1, 1]), ("olmoe-256m-1", [0, 0, 1, 1])]
    assert [gpus for _, gpus in started[2:6]] == [[0], [1], [0], [1]]
    assert machine.train(chosen, tmp_path / "tokens") and len(started) == len(chosen)  # nothing is left


@pytest.mark.slow
def test_the_command_trains_models_side_by_side(
    tokens: TokenFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rungs = {"small": Rung(TINY, 2), "bad": Rung(replace(TINY, batch_tokens=32 * 4096), 1)}
    monkeypatch.setattr(host, "LADDER", rungs)
    command, options = (
        ["ladder", str(tokens.folder), str(tmp_path)],
        ["--device", "cpu", "--side-by-side", "3"],
    )
    with pytest.raises(SystemExit, match="some models are not finished"):
        main([*command, *options])
    shown = capsys.readouterr().out
    assert "bad-0: failed with status 2: error: batch_tokens is 131072: the training text has only" in shown
    for seed in range(2):
        assert f"small-{seed}: 8 of 8 steps, loss on calibration text" in shown
        folder = tmp_path / "ladder" / f"small-{seed}"
        model = load(folder)
        assert model.map.num_experts == (TINY.experts,) * 2
        assert read_recipe(Recipe, folder / "recipe.json", []) == replace(TINY, seed=seed)
        assert len(log(folder)) == 8 and (folder / "held_out.json").is_file()
    names = [tmp_path / "ladder" / f"small-{seed}" / "model.safetensors" for seed in range(2)]
    assert not torch.equal(*(load_file(name)["lm_head.weight"] for name in names))
    main([*command, "small", *options])  # finished: nothing is left to do
    assert "small" not in capsys.readouterr().out


def test_bad_commands_are_one_line(tokens: TokenFolder, tmp_path: Path) -> None:
    start, end = ["ladder", str(tokens.folder), str(tmp_path)], ["--device", "cpu"]
    with pytest.raises(InputError, match="the ladder has no model 'olmoe-2b'; give some of olmoe-4m, "):
        main([*start, "olmoe-2b", *end])
    with pytest.raises(InputError, match="vocabulary=8192 but the tokens in .* have 300"):
        main([*start, "olmoe-4m", *end])
    with pytest.raises(InputError, match="the device is 'cuda:1': give cpu, or cuda where there is a GPU"):
        Host.here("cuda:1", None, False)
    with pytest.raises(InputError, match="0 models side by side: give at least 1"):
        Host.here("cpu", 0, False)
    with pytest.raises(InputError, match="give 0, or optimiser=adamw or muon"):
        replace(TINY, optimiser="sgd")
    with pytest.raises(InputError, match="recipe.batch_tokens is 500: give a multiple of 128"):
        replace(TINY, batch_tokens=500, context=4)
    with pytest.raises(InputError, match="recipe.pass_tokens is 100: give a multiple of 32"):
        replace(TINY, pass_tokens=100, batch_tokens=3200)


def test_speed_is_told_beside_the_dense_model(
    tokens: TokenFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(runs, "TIMED_STEPS", 2)
    # The ladder's recipe is there to be overridden.
    main(["speed", str(tokens.folder), *entries(TINY), "--recipe", "olmoe-4m", "--device", "cpu"])
    found = json.loads(capsys.readouterr().out)
    dense = replace(TINY, family="deepseek").dense()
    flops = size_of(TINY).flops_per_token * found["tokens_per_second"]
    assert found["share_of_matrix_products"] == pytest.approx(flops / found["matmul_flops_per_second"])
    by_dense = size_of(dense).flops_per_token * found["dense_tokens_per_second"]
    assert found["share_of_dense"] == pytest.approx(flops / by_dense)
