"""Measure a pre-training: the real trainer on real batches, for a few steps, in a folder that goes away."""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, replace
from os.path import getsize, join
from statistics import fmean, median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_ssl.corpus.check import shape_text
from nnunet_ssl.planners.synthetic import environment
from nnunet_ssl.report.benchmark import PARTS, Benchmark, Breakdown, Estimate, Flops, Memory, Setting, Speed
from nnunet_ssl.trainers import launch, memory
from nnunet_ssl.trainers.ceiling import conv_ceiling, count_flops, matmul_ceiling
from nnunet_ssl.trainers.devices import require_device, use_threads
from nnunet_ssl.trainers.precision import autocast_dtype
from nnunet_ssl.trainers.regions import RegionTimer, region
from nnunet_ssl.trainers.ssl_trainer import SSLTrainer
from nnunet_ssl.trainers.state import describe
