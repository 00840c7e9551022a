"""Fetching the published weights."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.checkpoint_folder import CheckpointFolder, check_folder
from client.errors import ClientError, InputError

REPOSITORY = "FlashLabs/Chroma-4B"
REVISION = "864b4aea0c1359f91af62f1367df64657dc5e90f"  # pragma: allowlist secret
"""The state of the repository that this project was written for."""

PATTERNS = ["*.json", "*.jinja", "*.safetensors", "tokenizer*", "vocab*", "merges.txt"]
NEVER = ["*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.md", "*.wav", "*.mp3", "*/*"]
"""No code, nothing that runs code when it is read, and nothing from folders: a checkpoint is flat."""

PROBLEMS_SHOWN = 10


def fetch_weights(folder: Path, *, repository: str, revision: str, token: str | None, endpoint: str | None) -> None:
    """Downloads the checkpoint's files into a folder; whole files that are there already are not fetched again.

    `endpoint` is the hub's address; None takes HF_ENDPOINT or the public hub, and no `token` takes HF_TOKEN or the one
    that was stored by logging in.
    """
    import huggingface_hub  # takes a second: only where it is needed
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()

    def download(*, dry_run: bool) -> str | list[huggingface_hub.DryRunFileInfo]:
        return huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            local_dir=folder,
            token=token,
            endpoint=endpoint,
            allow_patterns=PATTERNS,
            ignore_patterns=NEVER,
            dry_run=dry_run,
        )

    with said_plainly(repository, revision):
        folder.mkdir(parents=True, exist_ok=True)
        files = download(dry_run=True)
        assert not isinstance(files, str)
        check_space(folder, sum(file.file_size or 0 for file in files if file.will_download))
        download(dry_run=False)


def check_space(folder: Path, needed_bytes: int) -> None:
    """Refuses a download that the disk has no room for."""
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise ClientError(
            f"{folder} has {free_bytes / 1e9:.1f} GB left, the download needs {needed_bytes / 1e9:.1f} GB"
        )


@contextmanager
def said_plainly(repository: str, revision: str) -> Iterator[None]:
    """Turns what the hub's library raises into a sentence that says what to do."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repository}"
    try:
        yield
    except (errors.HFValidationError, NotADirectoryError, FileExistsError) as error:
        raise InputError(str(error).splitlines()[0]) from None
    except ClientError:
        raise
    except Exception as error:  # the library raises its own, its HTTP library's and the system's
        raise ClientError(explain(find_cause(error), repository, revision, page)) from None


def find_cause(error: BaseException) -> BaseException:
    """The first error of a chain, which the library wraps into ones that say less."""
    while (cause := error.__cause__ or error.__context__) is not None and not says_enough(error):
        error = cause
    return error


def says_enough(error: BaseException) -> bool:
    """Whether an error says by its type what went wrong."""
    from huggingface_hub import errors

    return isinstance(error, (errors.HfHubHTTPError, errors.OfflineModeIsEnabled))


def explain(error: BaseException, repository: str, revision: str, page: str) -> str:
    """What happened and what to do about it."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repository} is gated: accept its conditions at {page}, create a token at "
            "https://huggingface.co/settings/tokens, then set HF_TOKEN to it (or pass --token) and run this again"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no repository {repository} that this token may see: look at {page}, set HF_TOKEN where needed"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "the hub is not asked because HF_HUB_OFFLINE is set"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return (
            f"the hub refused the token for {repository} (HTTP {status}): "
            f"check HF_TOKEN and that you accepted the conditions at {page}"
        )
    if status is not None:
        return f"the hub answered HTTP {status} for {repository}; whole files are kept, run this again for the rest"
    cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"the download stopped ({cause}); whole files are kept, run this again for the rest"


def check_weights(folder: Path) -> CheckpointFolder:
    """What a complete checkpoint holds; InputError lists what is wrong with one that is not."""
    held, problems = check_folder(folder)
    if problems:
        shown = "; ".join(problems[:PROBLEMS_SHOWN])
        more = f"; and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise ClientError(
            f"{folder} is not a complete checkpoint: {shown}{more}. Delete the files that are named and run this again"
        )
    return held
