"""Errors of the Hugging Face client, as a user wants to read them."""

from __future__ import annotations

import errno
import shlex

from nnunet_ssl.checkpoints.hub.address import HubAddress
from nnunet_ssl.checkpoints.hub.known_models import close_names
from nnunet_ssl.files.unwritable import FULL


def explain(error: BaseException, address: HubAddress) -> str:
    """What is wrong, what was expected, what to type next."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo_id, hub = address.repo_id, constants.ENDPOINT
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # the client's wrapper around a failed connection
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return (
            f"{repo_id} is gated: its authors want to know who uses it. Accept its terms at {hub}/{repo_id}, then log in "
            "with `hf auth login` (or set HF_TOKEN) and run the same command again."
        )
    if isinstance(error, RepositoryNotFoundError) or (status == 404 and not isinstance(error, EntryNotFoundError)):
        if isinstance(error, RevisionNotFoundError):
            return f"{repo_id} has no revision {address.revision}. See {hub}/{repo_id}/commits/main."
        return (
            f"There is no model {repo_id} at {hub}, or it is private and you are not logged in (`hf auth login`, or set "
            f"HF_TOKEN). {close_names(repo_id)}If a file on this machine is meant: there is none of that name either."
        )
    if isinstance(error, EntryNotFoundError):
        return f"{repo_id} holds no file {address.path}. See {hub}/{repo_id}/tree/{address.revision or 'main'}."
    if status in (401, 403):
        return (
            f"{hub} refused access to {repo_id} ({status}): the token is invalid, or not allowed to do this. Log in "
            f"again with `hf auth login`, and look at {hub}/{repo_id} whether it asks for terms to be accepted."
        )
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} is no name of a model: {error}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, and {address} is not in the cache. {_how_to_fill_the_cache(address)}"
    if isinstance(error, HfHubHTTPError) and status is not None:
        return f"{hub} answered with an error ({status}) on {address}: {_first_line(error)} Try again later."
    if isinstance(error, OSError) and error.errno in (*FULL, errno.EACCES, errno.EROFS):
        return (
            f"{address} cannot be stored in the cache {constants.HF_HUB_CACHE}: {error.strerror}. Free space there, or "
            "point HF_HOME to a folder that has some and that you may write to."
        )
    reason = f"{type(error).__name__}: {_first_line(error)}"
    return f"{address} cannot be downloaded from {hub} ({reason}). {_how_to_fill_the_cache(address)}"


def _how_to_fill_the_cache(address: HubAddress) -> str:
    from huggingface_hub import constants

    return (
        f"Where there is network, run `nnUNetv2_pretrain_models {shlex.quote(str(address))} --download`, or `hf download "
        f"{shlex.quote(address.repo_id)}`; the cache is {constants.HF_HUB_CACHE} (HF_HOME moves it). Or give the path of a file."
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].strip() if text else "no reason given"
