"""A hub id stands for what the hub hands out, once, and no more of it than can be read; a local server is the hub."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from huggingface_hub import close_session, constants
from small_models import save, small_network

from realmodels import load
from realmodels.hub import fetched
from theory.errors import InputError

REPOSITORY = "owner/small-moe"
WEIGHTS = "model.safetensors"
TOKEN = "hf_of_somebody_who_accepted"
NEVER_FETCHED = {
    "pytorch_model.bin": b"a pickle",
    "modeling_evil.py": b"raise SystemExit",
    "model.gguf": b"GGUF",
    "original/consolidated.safetensors": b"the same in another format",
    "README.md": b"what it is",
    ".gitattributes": b"*",
}


@dataclass
class Hub:
    """What the server has, how it misbehaves, and what it was asked for.

    commits: files by commit; refs: commits by branch or tag.
    gated: if files are for the bearer of the token alone.
    breaks: how often the connection breaks in the middle of the weights.
    lies: if contents are shorter than announced.
    """

    commits: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    breaks: int = 0
    lies: bool = False
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def publish(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """The commit, by which the files can be asked for."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[commit] = files
        self.refs[ref] = commit
        return commit

    def gets(self) -> list[str]:
        """Names of the files whose content was asked for."""
        return [
            path.rpartition("/")[2] for path in self.asked if path.startswith("GET") and "/resolve/" in path
        ]


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            if not path.removeprefix("/api/models").startswith(f"/{REPOSITORY}/"):
                return self.refuse(404, "RepoNotFound")
            if found := re.fullmatch(rf"/api/models/{REPOSITORY}/(revision|tree)/([^/]+)", path):
                return self.listing(found[1], found[2])
            if found := re.fullmatch(rf"/{REPOSITORY}/resolve/([^/]+)/(.+)", path):
                return self.file(found[1], found[2])
            return self.refuse(404, "EntryNotFound")

        def listing(self, what: str, revision: str) -> None:
            commit = hub.refs.get(revision, revision)
            files = hub.commits.get(commit)
            if files is None:
                return self.refuse(404, "RevisionNotFound")
            if what == "revision":
                siblings = [{"rfilename": name} for name in files]
                return self.answer(
                    {"id": REPOSITORY, "sha": commit, "siblings": siblings, "gated": hub.gated}
                )
            return self.answer(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": etag(content)}
                    for name, content in files.items()
                ]
            )

        def file(self, revision: str, name: str) -> None:
            commit = hub.refs.get(revision, revision)
            if hub.gated and self.headers.get("authorization") != f"Bearer {TOKEN}":
                return self.refuse(401, "GatedRepo")
            content = hub.commits[commit].get(name)
            if content is None:
                return self.refuse(404, "EntryNotFound")
            start = (
                int(found[1]) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
            )
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{etag(content)}"')
            self.send_header("X-Repo-Commit", commit)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            body = content[start:-1] if hub.lies and name == WEIGHTS else content[start:]
            self.send_header(
                "Content-Length", str(len(content) - start if self.command == "HEAD" else len(body))
            )
            self.end_headers()
            if self.command == "HEAD":
                return None
            if name == WEIGHTS and hub.breaks:
                hub.breaks -= 1
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.close_connection = True
                return None
            self.wfile.write(body)
            return None

        def answer(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, and an empty cache."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    close_session()  # the client keeps proxies
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        close_session()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(small_network(), tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module")
def files(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(small_network(seed=1).to(torch.bfloat16), tmp_path_factory.mktemp("other"))


def refusal(name: str) -> str:
    with pytest.raises(InputError) as caught:
        load(name)
    message = str(caught.value)
    assert "\n" not in message and (name in message or name.replace("/", "--") in message)
    return message


def test_what_is_fetched(hub: Hub, files: Mapping[str, bytes], folder: Path) -> None:
    """The model, and nothing that could run, or that is the same model once more."""
    hub.publish({**files, **NEVER_FETCHED})
    assert load(REPOSITORY).weights_hash == load(folder).weights_hash
    assert sorted(hub.gets()) == sorted(files)
    assert {path.name for path in fetched(REPOSITORY).rglob("*")} == set(files)


def test_nothing_is_fetched_twice(
    hub: Hub, files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is used, and it is enough where no hub answers, or where none may be asked."""
    hub.publish(files)
    expected = load(REPOSITORY).weights_hash
    hub.asked.clear()
    assert load(REPOSITORY).weights_hash == expected
    assert hub.asked and not hub.gets()

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert load(REPOSITORY).weights_hash == expected
    assert not hub.asked
    assert "cannot be fetched from the hub" in refusal("owner/never-seen")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert load(REPOSITORY).weights_hash == expected


def test_revisions(hub: Hub, files: Mapping[str, bytes], folder: Path, other: Path) -> None:
    """A branch, a tag and a commit, side by side; without one it is the newest of main."""
    old = hub.publish(files, "v1.0")
    new = hub.publish({path.name: path.read_bytes() for path in other.iterdir()})
    hashes = {"old": load(folder).weights_hash, "new": load(other).weights_hash}
    assert hashes["old"] != hashes["new"]
    assert load(REPOSITORY).weights_hash == load(f"{REPOSITORY}@main").weights_hash == hashes["new"]
    assert (
        load(f"{REPOSITORY}@v1.0").weights_hash == load(f"{REPOSITORY}@{old}").weights_hash == hashes["old"]
    )
    assert load(f"{REPOSITORY}@{new}").weights_hash == hashes["new"]
    assert "the hub has no revision v2.0 of it: give a branch" in refusal(f"{REPOSITORY}@v2.0")
    hub.publish(files)
    assert load(REPOSITORY).weights_hash == hashes["old"]


def test_gated(hub: Hub, files: Mapping[str, bytes], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish(files)
    hub.gated = True
    assert "accept them, and log in with `hf auth login`" in refusal(REPOSITORY)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert "accept them" in refusal(REPOSITORY)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert load(REPOSITORY).weights_hash == load(folder).weights_hash


def test_a_broken_download_goes_on(hub: Hub, files: Mapping[str, bytes], folder: Path) -> None:
    hub.publish(files)
    hub.breaks = 3
    assert load(REPOSITORY).weights_hash == load(folder).weights_hash
    assert hub.gets().count(WEIGHTS) == 4 and hub.breaks == 0


def test_a_download_that_was_given_up_goes_on_later(
    hub: Hub, files: Mapping[str, bytes], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are complete stay; half a model is not taken for one."""
    hub.publish(files)
    hub.breaks = 10**6
    assert "cannot be fetched from the hub" in refusal(REPOSITORY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot be fetched from the hub (IncompleteSnapshotError" in refusal(REPOSITORY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.breaks = 0
    before = set(hub.gets())
    hub.asked.clear()
    assert load(REPOSITORY).weights_hash == load(folder).weights_hash
    assert WEIGHTS in hub.gets() and not set(hub.gets()) & before - {WEIGHTS}


def test_a_hub_that_lies(hub: Hub, files: Mapping[str, bytes]) -> None:
    """A file that is too short is none."""
    hub.publish(files)
    hub.lies = True
    assert "cannot be fetched from the hub (OSError: Consistency check failed" in refusal(REPOSITORY)


@pytest.mark.parametrize("name", ["owner/nothing", "owner/nothing@v1.0"])
def test_no_such_repository(name: str, hub: Hub) -> None:
    message = refusal(name)
    assert "cannot be fetched from the hub (RepositoryNotFoundError" in message
    assert f"hf download {name.replace('@', ' --revision ')} --local-dir FOLDER" in message


def test_pickles_alone(hub: Hub, files: Mapping[str, bytes]) -> None:
    hub.publish({name: content for name, content in files.items() if name != WEIGHTS} | NEVER_FETCHED)
    assert "no weights: convert them to safetensors" in refusal(REPOSITORY)
    assert not set(hub.gets()) & set(NEVER_FETCHED)


def test_code_stays_where_it_is(hub: Hub, files: Mapping[str, bytes]) -> None:
    config = json.loads(files["config.json"])
    config |= {"model_type": "mystery", "auto_map": {"AutoConfig": "modeling_evil.Config"}}
    hub.publish({**files, **NEVER_FETCHED, "config.json": json.dumps(config).encode()})
    assert "contains custom" in refusal(REPOSITORY)  # the rest is cut off after a long path
    assert "modeling_evil.py" not in hub.gets()


@pytest.mark.parametrize("path", ["../../../../escaped.json", "..\\..\\escaped.json", "/escaped.json"])
def test_names_that_lead_elsewhere(path: str, hub: Hub, files: Mapping[str, bytes], tmp_path: Path) -> None:
    """Nothing is written outside the cache, and the model is whole."""
    hub.publish({**files, path: b"{}"})
    load(REPOSITORY)
    assert not list(tmp_path.rglob("escaped.json"))
    assert {each.name for each in fetched(REPOSITORY).rglob("*")} - {path} == set(files)
