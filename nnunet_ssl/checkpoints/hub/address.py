"""What a user types to name a checkpoint on the Hugging Face Hub, taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from nnunet_ssl.errors import CheckpointError

WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
PAGES = ("huggingface.co", "www.huggingface.co", "hf.co")
SYNTAX = "ORG/NAME, hf://ORG/NAME[@REVISION][/FILE], or the URL of its page"

ID = r"(?P<repo_id>[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+)"
REVISION = r"(?:@(?P<revision>refs/pr/\d+|[^/@]+))?"
BARE = re.compile(rf"{ID}{REVISION}")
URI = re.compile(rf"hf://(?:models/)?{ID}{REVISION}(?:/(?P<path>.*))?")
OTHER_KINDS = ("datasets", "spaces", "kernels", "buckets", "collections", "papers", "docs", "api")
FILE_ACTIONS = ("blob", "resolve", "raw", "blame", "tree")


@dataclass(frozen=True)
class HubAddress:
    """A model on the hub; `path` is a file or a folder inside it, "" for the whole repository."""

    repo_id: str
    revision: str | None = None
    path: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo_id}{revision}" + (f"/{self.path}" if self.path else "")

    def file(self, path: str) -> HubAddress:
        """The address of one file in the same repository and revision."""
        return HubAddress(self.repo_id, self.revision, path)


def parse_address(text: str) -> HubAddress | None:
    """The hub address `text` stands for, None when it can only be something else (a path, a name).

    Raises CheckpointError for what is meant as an address but is none of a model.
    """
    text = text.strip()
    if text.startswith("hf://"):
        return _from_uri(text)
    host = text.removeprefix("https://").removeprefix("http://").partition("/")[0].lower()
    if text.startswith(("https://", "http://")):
        return _from_url(text, host)
    if host in PAGES:
        return _from_url(f"https://{text}", host)
    found = BARE.fullmatch(text)
    if found is None or is_weights(text):  # folder/checkpoint.pth is a path, there or not
        return None
    return HubAddress(found["repo_id"], found["revision"])


def _from_uri(text: str) -> HubAddress:
    found = URI.fullmatch(text)
    kind = text.removeprefix("hf://").partition("/")[0]
    if found is None or kind in OTHER_KINDS:
        raise CheckpointError(f"{text} is no address of a model. Expected {SYNTAX}.")
    return HubAddress(found["repo_id"], found["revision"], (found["path"] or "").strip("/"))


def _from_url(url: str, host: str) -> HubAddress:
    if host not in (*PAGES, endpoint_host()):
        raise CheckpointError(
            f"{url} is no page of the Hugging Face Hub ({PAGES[0]}), and only from there files are downloaded. "
            "Download it yourself and give the path of the file."
        )
    parts = [unquote(part) for part in urlsplit(url).path.split("/") if part]
    known = len(parts) >= 2 and parts[0] not in OTHER_KINDS and BARE.fullmatch("/".join(parts[:2]))
    if not known or (len(parts) > 2 and (parts[2] not in FILE_ACTIONS or len(parts) < 4)):
        raise CheckpointError(f"{url} is not the page of a model. Expected https://{PAGES[0]}/ORG/NAME.")
    return HubAddress("/".join(parts[:2]), parts[3] if len(parts) > 3 else None, "/".join(parts[4:]))


def endpoint_host() -> str:
    """Host (and port) of the hub in use, as HF_ENDPOINT sets it."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc.lower()


def is_weights(name: str) -> bool:
    """Whether a file name is that of a checkpoint we read."""
    return name.lower().endswith(WEIGHT_SUFFIXES)


def choose_weights(names: list[str], where: str, syntax: str) -> str:
    """The checkpoint a user expects among files: checkpoint_final.pth, or the only .pth, .pt or .safetensors file.

    names: paths with "/" inside `where`. Raises CheckpointError listing the candidates when there is no such one;
    `syntax` is how to choose one of them, with {} in its place.
    """
    candidates = sorted(filter(is_weights, names))
    finals = [name for name in candidates if name.rpartition("/")[2] == "checkpoint_final.pth"]
    at_top = [name for name in finals if "/" not in name]
    for choice in (at_top, finals, candidates):
        if len(choice) == 1:
            return choice[0]
    if not candidates:
        held = ", ".join(sorted(names)[:10]) or "nothing"
        raise CheckpointError(f"{where} holds no {', '.join(WEIGHT_SUFFIXES)} file, only {held}.")
    shown = "\n".join(f"  {syntax.format(name)}" for name in candidates[:30])
    more = f"\n  and {len(candidates) - 30} more" if len(candidates) > 30 else ""
    raise CheckpointError(f"{where} holds {len(candidates)} checkpoints. Choose one of them:\n{shown}{more}")
