"""Progress bars: drawn anew ten times a second on a terminal, now and then in a log file."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from tqdm import tqdm

LOG_INTERVAL = 30.0  # seconds


def progress_bar(*args: Any, **kwargs: Any) -> Any:
    """tqdm's bar; where nobody watches a terminal it comes at its beginning, twice a minute, and at its end."""
    make: Any = tqdm if sys.stderr.isatty() else partial(tqdm, mininterval=LOG_INTERVAL, maxinterval=2 * LOG_INTERVAL)
    return make(*args, **kwargs)
