"""One file per command: parses, validates, calls."""

import os
import warnings

# Before torch starts its threads: on a CPU, threads that wait actively take the cores from those that read the data.
# With two cores and one reading process a training step then takes several times as long (benchmarks/LOG.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# timm's own business, said at its import in every process.
warnings.filterwarnings("ignore", message=r"`torch\.jit", category=FutureWarning)
