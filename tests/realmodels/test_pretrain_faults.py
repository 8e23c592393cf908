"""Trainings under bad input, full disks and two runs at once: one line, and nothing that was computed is lost."""

import lzma
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from test_ladder import TINY, texts
from transformers import PreTrainedModel

from realmodels import pretrain
from realmodels.pretrain import Recipe, TokenFolder, host, runs
from realmodels.pretrain.__main__ import main
from realmodels.pretrain.recipe import entries, read_recipe
from theory.errors import InputError

CPU = torch.device("cpu")
SHORT = replace(TINY, steps=4)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenFolder:
    folder = texts(tmp_path_factory.mktemp("with spaces"), 60)
    pretrain.tokenize(folder, folder / "to kens", TINY.vocabulary, pieces=2)
    return TokenFolder.open(folder / "to kens")


def test_a_model_that_is_not_whole_is_not_finished(
    tokens: TokenFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever saving is cut off, the same command goes on from the checkpoint to the same weights."""
    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", 0)
    pretrain.train(tokens, tmp_path / "whole", SHORT, CPU)
    save = PreTrainedModel.save_pretrained

    def cut_off(network: PreTrainedModel, folder: Path, **known: Any) -> None:
        save(network, folder, **known)
        weights = Path(folder) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", cut_off)
        with pytest.raises(OSError, match="No space"):
            pretrain.train(tokens, tmp_path / "full", SHORT, CPU)
    assert not runs.is_finished(tmp_path / "full") and (tmp_path / "full" / runs.CHECKPOINT).is_file()
    assert pretrain.train(tokens, tmp_path / "full", SHORT, CPU)
    whole, full = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "full"))
    assert all(torch.equal(full[name], each) for name, each in whole.items())
    names = [{each.name for each in (tmp_path / name).iterdir()} for name in ("whole", "full")]
    assert names[0] == names[1] and not names[0] & {"unfinished", runs.CHECKPOINT}


def test_two_runs_do_not_share_a_folder(tokens: TokenFolder, tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / runs.LOCK),
        pytest.raises(InputError, match="another run works in .*: wait for its end, or give another folder"),
    ):
        pretrain.train(tokens, tmp_path, SHORT, CPU)
    assert {each.name for each in tmp_path.iterdir()} <= {runs.LOCK}
    assert pretrain.train(tokens, tmp_path, SHORT, CPU)


def test_a_run_that_waited_finds_what_another_finished(tmp_path: Path) -> None:
    (tmp_path / runs.FINISHED[0]).touch()
    with pytest.raises(InputError, match="holds a finished model"), runs.alone_in(tmp_path, runs.ALONE):
        pass


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"vocabulary": 300}',
        b'{"vocabulary": "300", "sizes": {}}',
        b"[" * 9999,
    ],
)
def test_what_is_no_token_folder_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokens.json").write_bytes(content)
    with pytest.raises(InputError, match=r"tokens\.json"):
        TokenFolder.open(tmp_path)


def test_a_piece_that_is_no_file_is_refused(tokens: TokenFolder, tmp_path: Path) -> None:
    shutil.copytree(tokens.folder, tmp_path / "tokens")
    (tmp_path / "tokens" / "training-009.xz").mkdir()
    with pytest.raises(InputError, match="damaged training"):
        TokenFolder.open(tmp_path / "tokens").stream("training")


@pytest.mark.parametrize("name", ["calibration", "training"])
def test_a_stream_that_is_too_short_is_refused_before_training(
    tokens: TokenFolder, tmp_path: Path, name: str
) -> None:
    shutil.copytree(tokens.folder, tmp_path / "tokens")
    for file in (tmp_path / "tokens").glob(f"{name}-*"):
        file.write_bytes(lzma.compress(b"\0\0"))
    with pytest.raises(InputError, match=f"the {name} text has only"):
        pretrain.train(TokenFolder.open(tmp_path / "tokens"), tmp_path / "out", SHORT, CPU)


def test_a_tokenizer_is_asked_for_before_training(tokens: TokenFolder, tmp_path: Path) -> None:
    shutil.copytree(tokens.folder, tmp_path / "tokens")
    (tmp_path / "tokens" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokens has no tokenizer\.json"):
        pretrain.train(TokenFolder.open(tmp_path / "tokens"), tmp_path / "out", SHORT, CPU)
    assert not (tmp_path / "out" / "log.jsonl").exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"5", b"\xff", b'{"steps": 4, "steps": 5}', b"[" * 9999]
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.json").write_bytes(content)
    with pytest.raises(InputError, match=r"recipe\.json"):
        read_recipe(Recipe, tmp_path / "recipe.json", [])


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 9999, "NaN", "[1]"])
def test_an_entry_of_no_allowed_value_is_refused(value: str) -> None:
    with pytest.raises(InputError, match=r"recipe\.steps is") as caught:
        read_recipe(Recipe, None, [f"steps={value}"])
    assert len(str(caught.value)) < 300


def test_tokens_of_a_run_that_was_killed_are_no_folder(
    tokens: TokenFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old sizes and a new stream do not go together."""
    shutil.copytree(tokens.folder, tmp_path / "tokens")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("realmodels.pretrain.tokens.write_stream", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain.tokenize(tokens.folder.parent, tmp_path / "tokens", 300)
    with pytest.raises(InputError, match=r"tokens\.json cannot be read"):
        TokenFolder.open(tmp_path / "tokens")
    with pytest.raises(InputError, match="the seed is -1"):
        pretrain.tokenize(tokens.folder.parent, tmp_path / "tokens", 300, pieces=2, seed=-1)


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99"])
@pytest.mark.parametrize("command", ["train", "speed"])
def test_a_device_that_there_is_not(tokens: TokenFolder, tmp_path: Path, command: str, device: str) -> None:
    out = [str(tmp_path / "out")] if command == "train" else []
    with pytest.raises(InputError, match=f"the device is '{device}': give cpu, or cuda where there is a GPU"):
        main([command, str(tokens.folder), *out, *entries(SHORT), "--device", device])


@pytest.mark.parametrize("option", ["--seconds", "--minutes", "--matmul-rate"])
@pytest.mark.parametrize("value", ["nan", "inf", "-5", "0"])
def test_a_time_or_rate_is_above_0(
    tokens: TokenFolder, tmp_path: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", str(tokens.folder), str(tmp_path), *entries(SHORT), f"{option}={value}"])
    assert caught.value.code == 2 and f"{value} is not allowed" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left")])
def test_a_full_disk_is_one_line(
    tokens: TokenFolder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(runs, "proceed", full)
    with pytest.raises(InputError, match="No space left"):
        main(["train", str(tokens.folder), str(tokens.folder / "out"), *entries(SHORT), "--device", "cpu"])


def test_a_file_in_the_place_of_a_folder_is_one_line(tokens: TokenFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(InputError, match="give a folder that can be written"):
            main(["train", str(tokens.folder), str(out), *entries(SHORT), "--device", "cpu"])


def test_an_interrupted_ladder_says_how_it_goes_on(
    tokens: TokenFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(host.Host, "train", interrupted)
    monkeypatch.setattr("realmodels.pretrain.__main__.require_vocabulary", lambda *_: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as caught:
        main(["ladder", str(tokens.folder), str(tmp_path), "--device", "cpu"])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on\n"
