"""How is a checkpoint fetched from the hub?

Only what can be read here is fetched: safetensors, JSON and tokenizers; no pickle, no code. The hub's own client keeps
files in its cache, goes on where a connection broke, and reads the cache alone if HF_HUB_OFFLINE is 1 or no network is
there.
"""

import re
from pathlib import Path
from textwrap import shorten

from theory.errors import InputError

HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
FILES = ("*.json", "*.safetensors", "*.model", "*.txt")
FOLDERS = ("*/*",)  # of a repository hold the same model in other formats


def fetched(name: str) -> Path:
    """The folder of the cache with the files of a repository.

    name: owner/name, or owner/name@revision, the revision being a branch, a tag or a commit.
    InputError if it cannot be fetched: what the hub answered, and what to do.
    """
    from huggingface_hub import snapshot_download  # here: the embedded model needs no hub
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    found = HUB_ID.fullmatch(name)
    if found is None:
        raise InputError(f"model {name}: no hub id: give owner/name or owner/name@revision")
    repository, revision = found["id"], found["revision"]
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(FILES), ignore_patterns=list(FOLDERS)
            )
        )
    except GatedRepoError as error:
        raise InputError(
            f"model {name}: its owner lets those read it who accept the terms on its page: accept them, and log in with"
            " `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"model {name}: the hub has no revision {revision} of it: give a branch, a tag or a commit"
        ) from error
    except Exception as error:  # of the hub's client, and of the two libraries below it
        reason = shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
        which = f"{repository} --revision {revision}" if revision else repository
        raise InputError(
            f"model {name}: no such folder here, and it cannot be fetched from the hub ({reason}); where there is a"
            f" network, run `hf download {which} --local-dir FOLDER` and pass that folder with --model FOLDER"
        ) from error
