"""Every error that a user can mend, under one root.

The commands print these as one line (`nnunet_ssl.messages`). Whatever else is raised is a mistake of ours, and keeps its
traceback. So what a user's settings, files or machine can cause is raised as one of them; a plain ValueError or TypeError
tells a programmer that a function was called wrongly. `tests/unit/test_errors.py` looks at every `raise` of the package.

The classes also are what Python would raise in their place (ValueError, FileNotFoundError, ...): who catches that catches them.
"""

from __future__ import annotations

import os
from typing import Any

from nnunet_ssl.quoting import printable

Path = str | os.PathLike[str]


class NnunetSSLError(Exception):
    """Something a user can mend: the message says what is wrong, what was expected, and what to type next.

    path: the file or folder it is about; expected, found: as values, where the message names them. None where there is none.
    """

    def __init__(self, message: str = "", *, path: Path | None = None, expected: Any = None, found: Any = None) -> None:
        super().__init__(printable(message))  # which quotes files, and ends on a terminal
        self.path, self.expected, self.found = path, expected, found


class SettingsError(NnunetSSLError, ValueError):
    """A plans block or a flag holds what is no setting.

    Where single settings are refused, `expected` and `found` are dicts by their names.
    """


class CorpusError(NnunetSSLError, RuntimeError):
    """The images, or what was made of them, cannot be used as asked."""


class NotPreprocessed(CorpusError, FileNotFoundError):
    """The images have not been preprocessed for these plans."""


class UnusableImage(NnunetSSLError, RuntimeError):
    """One case cannot be used; the message is the reason. The others go on."""


class CheckpointError(NnunetSSLError, RuntimeError):
    """A checkpoint cannot be read, written or put into a network."""


class RepositoryNotEmptyError(CheckpointError):
    """The repository on the hub holds files that an upload would replace; `found` names them."""


class BackboneError(NnunetSSLError, ValueError):
    """The network, the patch size and the pretext task do not go together."""


class BadFile(NnunetSSLError, ValueError):
    """A file cannot be what it should be; the message is one line that names it and says why."""


class FolderTaken(NnunetSSLError, FileExistsError):
    """A folder holds something else, which is not overwritten."""


class MachineError(NnunetSSLError, RuntimeError):
    """The machine, its folders, processes or packages do not allow what is asked for."""


class FolderInUse(MachineError):
    """Another run is at work in a result folder."""


class CannotWrite(MachineError, OSError):
    """A file cannot be written; the message is one line that says why, how much room there is, and what to do."""

    def __init__(self, number: int | None, message: str, *, path: Path | None = None) -> None:
        OSError.__init__(self, number, printable(message))
        self.path, self.expected, self.found = path, None, None

    def __str__(self) -> str:
        return str(self.args[1])


class TrainingError(NnunetSSLError, RuntimeError):
    """A run cannot go on as it is: what it computes is not finite, or one of its processes has died."""


class DemoError(NnunetSSLError, RuntimeError):
    """The demo cannot go on."""
