"""One file per command: parses, validates, calls."""

import os

# Before torch starts its threads: on a CPU, threads that wait actively take the cores from those that read the data.
# With two cores and one reading process a training step then takes several times as long (benchmarks/LOG.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
