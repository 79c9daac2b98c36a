"""Models on the Hugging Face hub: config and tokenizer when they are described, weights later."""

from functools import lru_cache
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

from study.errors import StudyError
from study.models.quiet import quiet, quoted

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The weights in one file, or the index of its shards."""
CONVERT = (
    "convert it to safetensors first (model.save_pretrained in transformers, or the hub's convert"
    " Space)"
)
"""The fix for weights that are not safetensors."""

_SMALL_FILES = ["*.json", "*.jinja", "*.model", "merges.txt"]
"""Config and tokenizer, at the top of a repository."""


@lru_cache
def snapshot(name: str) -> Path:
    """The folder of the hub model ``name`` with its config and tokenizer, named by the commit.

    Cached, so that a process uses one commit. Raises :class:`StudyError` if the model is unknown,
    gated or without safetensors, or if the hub can't be reached.
    """
    named = f"model.path={name!r}"
    try:
        with quiet():
            folder = Path(
                snapshot_download(name, allow_patterns=_SMALL_FILES, ignore_patterns=["*/*"])
            )
        files = {file.name for file in folder.iterdir()}
        if not files & {SINGLE, INDEX}:
            files = set(HfApi().list_repo_files(name, revision=folder.name))
    except GatedRepoError:
        raise StudyError(
            f"{named} is not a folder, and the hub model is gated: accept its terms on its page and"
            " run `hf auth login`, or give a folder"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise StudyError(
            f"{named} is not a folder, and the hub has no public model of this name: check the"
            " spelling, give a folder, or run `hf auth login` if the model is private"
        ) from None
    except Exception as error:  # the hub's or its HTTP client's, depending on the version
        raise StudyError(
            f"{named} is not a folder, and the hub can't be reached ({quoted(error)}): check the"
            " path or the network, or give a folder"
        ) from None
    if not files & {SINGLE, INDEX}:
        raise StudyError(f"{named} has no safetensors weights on the hub: {CONVERT}")
    return folder


def fetch_weights(name: str, commit: str) -> None:
    """Add the weights to the snapshot folder of a commit; files already there are not fetched.

    Raises :class:`StudyError` if a download fails.
    """
    wanted = ["model*.safetensors", INDEX]
    try:
        snapshot_download(name, revision=commit, allow_patterns=wanted, ignore_patterns=["*/*"])
    except Exception as error:  # as in snapshot
        raise StudyError(
            f"model.path={name!r}: its weights can't be fetched from the hub ({quoted(error)}):"
            " check the network and the disk, then run the same command again"
        ) from None
