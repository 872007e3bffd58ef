"""Runs on the Hugging Face hub: `hf://user/name[@revision]`, through huggingface-hub.

Only the files asked for are downloaded, and nothing in them is executed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import RunError

SCHEME = "hf://"


def download(address: str, files: Sequence[str]) -> Path:
    """The folder in the hub's cache that has those of `files` that the repository has.

    Without a connection it is what the cache has. Raises RunError.
    """
    form = re.fullmatch(rf"{SCHEME}(?!.*\.\.)([^/@]+/[^/@]+)(?:@(.+))?", address)
    if not form:
        raise RunError(
            f"{address} is not an address on the hub; write {SCHEME}user/name[@revision]"
        )
    repository, revision = form.groups()
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except Exception as e:  # a broken installation may raise anything
        raise RunError(
            f'{address} needs huggingface-hub ({e}): pip install "backspike[hub]"'
        ) from e
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except errors.HFValidationError as e:
        reason = f"is not an address on the hub: {e}"
    except errors.GatedRepoError:
        reason = "needs permission: accept its terms on the hub, then run `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "is not on the hub, or private: check the name, or run `hf auth login`"
    except errors.RevisionNotFoundError:
        reason = f"has no revision {revision or 'main'!r}: give a branch, a tag or a commit"
    except errors.LocalEntryNotFoundError:
        offline = "HF_HUB_OFFLINE forbids to download it"
        offline = offline if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        reason = f"is not complete in the cache {constants.HF_HUB_CACHE}, and {offline}"
    except Exception as e:  # of the network, the disk or the service
        reason = f"cannot be downloaded: {type(e).__name__}: {e}"
    raise RunError(f"{address} {' '.join(reason.split())}")
