"""Say what is wrong with a file that should have been a checkpoint."""

from __future__ import annotations

import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from nnunet_ssl.checkpoints.screening.ambiguity import has_table

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
ZIP_MAGIC = b"PK\x03\x04"
SEARCHED = 1 << 26  # bytes at the beginning of an old file in which a forbidden name is looked for
PICKLE_MAGIC = b"\x80"
EXPECTED = (
    "Expected dense tensors and plain Python types only. If you trust where it comes from, extract the weights where "
    'they were made: torch.save({"network_weights": model.state_dict()}, "weights.pth").'
)


def checkpoints_near(path: Path) -> str:
    """Sentence that lists the other checkpoints in the folder of `path`, or where that path stops existing."""
    folder = path.parent
    if not folder.is_dir():
        existing = next((p for p in folder.parents if p.is_dir()), Path("."))
        return f"The path exists only up to {existing}."
    near = sorted(
        str(p.relative_to(folder))
        for pattern in ("*", "*/*")
        for p in folder.glob(pattern)
        if p.suffix in CHECKPOINT_SUFFIXES and p != path and not p.name.startswith(".")
    )
    if not near:
        return f"There are no checkpoints in {folder}."
    more = f" and {len(near) - 8} more" if len(near) > 8 else ""
    return f"Checkpoints in {folder}: {', '.join(near[:8])}{more}."


def why_not_opened(path: Path, reason: str, forbidden: str | None = None) -> str:
    """Why a file was refused before or after torch opened it: for the name it would import, or for `reason`."""
    first = ""
    if forbidden is None:
        forbidden, first = _forbidden_name(path, ""), f"{reason}; it " if reason else ""
    if forbidden is None and _is_text(path):
        return _no_checkpoint(path)
    if forbidden is None:
        return f"{path} {reason}. It was refused, and nothing of it was run. {EXPECTED}"
    how = "is no plain tensor" if forbidden.startswith("torch.") else "could run code on loading"
    return f"{path} {first}holds {forbidden}, which {how}, so it was refused and nothing of it was run. {EXPECTED}"


def why_unreadable(path: Path, error: Exception) -> str:
    """What is wrong with a file that cannot be followed, or that torch's safe loader refused with `error`."""
    with path.open("rb") as file:
        start = file.read(4)
    whole_zip = has_table(path)
    forbidden = _forbidden_name(path, str(error))
    if forbidden is not None:
        return why_not_opened(path, "", forbidden)
    if start.startswith(ZIP_MAGIC) and not whole_zip:
        return f"{path} is truncated: its writing or copying was interrupted. {checkpoints_near(path)}"
    if start.startswith(ZIP_MAGIC):
        is_torch = any(name.endswith("data.pkl") for name in _members(path))
        if is_torch:
            return f"{path} is damaged: {_first_line(error)}. Copy or download it again. {checkpoints_near(path)}"
        return f"{path} is a zip archive but no PyTorch checkpoint. Unpack it and name the .pth file in it."
    if path.suffix == ".safetensors":
        return f"{path} is damaged or no safetensors file: it has no header. Copy or download it again. {checkpoints_near(path)}"
    if start.startswith(PICKLE_MAGIC):
        return (
            f"{path} is damaged, truncated or a pickle that is no PyTorch checkpoint: {_first_line(error)}. "
            f"{checkpoints_near(path)}"
        )
    return _no_checkpoint(path)


def _is_text(path: Path) -> bool:
    """Whether a file begins as one that people write: its letters are pickle operations, too, which says nothing to them."""
    with path.open("rb") as file:
        start = file.read(200)
    return start.isascii() and all(c.isprintable() or c.isspace() for c in start.decode("ascii"))


def _no_checkpoint(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    return (
        f"{path} is not a checkpoint: it begins with {start!r}. Expected a file written by torch.save, or a "
        f".safetensors file. {checkpoints_near(path)}"
    )


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError):
        return []


def _forbidden_name(path: Path, message: str) -> str | None:
    """What a refused pickle wanted to load: as torch says, or, where its reader gave up earlier, as the pickle says."""
    found = re.search(r"GLOBAL ([\w.]+) (?:was not an allowed global|whose module)", message)
    if found:
        return found.group(1)
    try:
        if has_table(path):
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                with archive.open(name) as record:  # which may expand to anything
                    return next(_foreign_globals(record.read(min(SEARCHED, path.stat().st_size))), None)
        with path.open("rb") as file:
            return next(_foreign_globals(file.read(SEARCHED)), None)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, MemoryError):
        return None  # a damaged archive
    except (ValueError, StopIteration):  # cut in the middle of a pickle, or none at all
        return None


def _foreign_globals(content: bytes) -> Iterator[str]:
    """Names a pickle would import besides those of tensors, read without running it. Raises ValueError if cut."""
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "STACK_GLOBAL" and len(strings) > 1:
            name = ".".join(strings[-2:])
        elif opcode.name == "GLOBAL":
            name = str(argument).replace(" ", ".")
        else:
            if isinstance(argument, str):
                strings.append(argument)
            continue
        if name.split(".")[0] not in ("torch", "collections", "numpy", "_codecs"):
            yield name


def _first_line(error: Exception) -> str:
    """The cause in torch's long message, without its advice to load the file unsafely."""
    text = str(error).strip()
    found = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    line = found.group(1) if found else (text.splitlines() or [type(error).__name__])[0]
    return line[:200].rstrip(".")
