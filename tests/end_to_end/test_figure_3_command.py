"""`paper_repro.py --figure 3` on the shipped model, redrawn from committed data, and on unusable input."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import paper_repro
from figures.catalogue import DATA
from realmodels.load import CHECKPOINTS
from theory.evidence import Result

PROGRAM = Path(paper_repro.__file__)
FIGURE_3 = ("--figure", "3", "--preset", "quick")
TINY_OLMOE = CHECKPOINTS / "tiny-olmoe"


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"COLUMNS": "200"} | environment,
    )


def here(capfd: pytest.CaptureFixture[str], *options: str) -> subprocess.CompletedProcess[str]:
    """What `run` gives, without a process of its own, which takes seconds to import everything."""
    capfd.readouterr()
    status = paper_repro.main([*FIGURE_3, *options])
    written = capfd.readouterr()
    return subprocess.CompletedProcess(options, status, written.out, written.err)


def start(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a quick run."""
    out = tmp_path_factory.mktemp("quick")
    done = run(*FIGURE_3, "--out", str(out))
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "dense modules on analog hurt more" in done.stdout
    return out


def test_a_run_writes_numbers_pictures_and_provenance(finished: Path) -> None:
    result = Result.from_json((finished / "figure-3.quick.json").read_text())
    assert result.preset == "quick" and result.data["model"] == "tiny-olmoe"
    assert len(result.findings) == 6  # at c = 2.5 alone: two rules, and the converters, per granularity
    shared = result.provenance["shared"]
    assert shared["text"] == "evaluation" and len(shared["weights"]) == len(shared["text_hash"]) == 64
    assert result.provenance["seeds"] == [0, 2000, 2001]
    assert (finished / "figure-3.quick.png").read_bytes().startswith(b"\x89PNG")
    assert (finished / "figure-3.quick.pdf").read_bytes().startswith(b"%PDF")
    with (finished / "figure-3.quick.csv").open() as file:
        rows = list(csv.DictReader(file))
    curves = result.data["curves"]
    assert [float(row["loss_change"]) for row in rows] == [curve["loss_change"] for curve in curves]


def test_a_second_run_computes_nothing_and_says_the_same(finished: Path) -> None:
    before = Result.from_json((finished / "figure-3.quick.json").read_text())
    assert run(*FIGURE_3, "--out", str(finished)).returncode == 0
    after = Result.from_json((finished / "figure-3.quick.json").read_text())
    assert (after.data, after.findings) == (before.data, before.findings)
    assert after.provenance["units"]["computed"] == 0


def kept_units(out: Path) -> int:
    """How many units are in the cache, without what they share."""
    files = (out / ".cache").rglob("*.json")
    return sum("config" in json.loads(file.read_text())["key"] for file in files)


@pytest.mark.slow
def test_killed_at_any_moment_it_continues_to_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    for _ in range(3):
        process = start(*FIGURE_3, "--out", str(tmp_path), "--workers", "1")
        known = kept_units(tmp_path)
        deadline = time.monotonic() + 120
        while kept_units(tmp_path) < known + 5:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    kept = kept_units(tmp_path)
    assert run(*FIGURE_3, "--out", str(tmp_path), "--workers", "1").returncode == 0
    resumed, whole = (
        Result.from_json((folder / "figure-3.quick.json").read_text()) for folder in (tmp_path, finished)
    )
    assert resumed.provenance["units"]["from_cache"] == kept
    assert (resumed.data, resumed.findings) == (whole.data, whole.findings)


def test_the_committed_result_is_redrawn_without_a_run(tmp_path: Path) -> None:
    done = run("--figure", "3", "--from-data", "--out", str(tmp_path), "--format", "png,pdf,svg")
    assert done.returncode == 0, done.stderr
    committed = (DATA / "figure-3.json").read_text()
    assert (tmp_path / "figure-3.committed.json").read_text() == committed
    assert json.loads(committed)["preset"] == "full"
    assert (tmp_path / "figure-3.committed.svg").stat().st_size > 0


@pytest.mark.slow
def test_evaluating_on_a_file(tmp_path: Path) -> None:
    text = tmp_path / "my text.txt"
    text.write_text("The experts with the largest neurons stay digital; the others are programmed. " * 200)
    done = run(*FIGURE_3, "--text", str(text), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").glob("figure-3.quick.text-my-text-txt-*.json")
    assert Result.from_json(file.read_text()).data["text"] == str(text)


# Bad input: one line that names the value and says what to do, status 2


def copied(folder: Path) -> Path:
    return shutil.copytree(TINY_OLMOE, folder / "model")


def without_config(folder: Path) -> Path:
    model = copied(folder)
    (model / "config.json").unlink()
    return model


def truncated(folder: Path) -> Path:
    model = copied(folder)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return model


def pickled(folder: Path) -> Path:
    model = copied(folder)
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    return model


def with_nan(folder: Path) -> Path:
    model = copied(folder)
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"][0, 0] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model


def dense(folder: Path) -> Path:
    model = copied(folder)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(model)
    return model


def nothing(folder: Path) -> Path:
    return folder / "no such folder"


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (without_config, ["config.json"]),
        (truncated, ["model.safetensors", "intact"]),
        (pickled, ["pytorch_model.bin", "pickle", "safetensors"]),
        (with_nan, ["lm_head.weight", "finite"]),
        (dense, ["experts", "mixture-of-experts"]),
        (nothing, ["no such folder", "tiny-olmoe"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_unusable_models(
    make: Callable[[Path], Path], parts: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expect_one_line(here(capfd, "--model", str(make(tmp_path)), "--out", str(tmp_path / "out")), *parts)


def test_a_hub_id_without_network(tmp_path: Path) -> None:
    done = run(*FIGURE_3, "--model", "allenai/OLMoE-1B-7B-0924", "--out", str(tmp_path), HF_HUB_OFFLINE="1")
    expect_one_line(done, "allenai/OLMoE-1B-7B-0924", "hf download", "--model FOLDER")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["empty"]),
        (b" \n\t", ["empty"]),
        (b"caf\xe9", ["UTF-8", "byte 3"]),
        (b"Too short.", ["tokens", "two blocks"]),
        (None, ["cannot be read"]),
    ],
    ids=["empty", "blank", "latin-1", "short", "missing"],
)
def test_unusable_texts(
    content: bytes | None, parts: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    if content is not None:
        text.write_bytes(content)
    expect_one_line(here(capfd, "--text", str(text), "--out", str(tmp_path / "out")), *parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(tmp_path: Path) -> None:
    expect_one_line(
        run(*FIGURE_3, "--device", "cuda", "--out", str(tmp_path)), "--device cuda", "--device cpu"
    )


def expect_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("paper_repro.py: error: ") and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.slow
def test_the_findings_do_not_depend_on_the_number_of_workers(finished: Path, tmp_path: Path) -> None:
    """`finished` used a worker for each core."""
    assert run(*FIGURE_3, "--out", str(tmp_path), "--workers", "1").returncode == 0
    one, more = (
        Result.from_json((folder / "figure-3.quick.json").read_text()) for folder in (tmp_path, finished)
    )
    assert one.data == more.data
    assert np.isfinite([curve["loss_change"] for curve in one.data["curves"]]).all()
