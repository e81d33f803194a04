"""Mixed precision as on a GPU, for tensors on a CPU that are only counted.

torch's autocast has other lists for CPUs than for GPUs: there a layer norm gives float32, here bfloat16, and average pooling
the other way round. A U-Net's step on a GPU so takes a tenth less than a CPU's count, a Primus' step a tenth more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

# Names of functions and of methods of tensors; torch's "CUDA Ops that can autocast to float32", but for those that a CPU's
# autocast brings to float32 as well (https://docs.pytorch.org/docs/stable/amp.html).
FLOAT32 = (
    "acos", "asin", "cosh", "cosine_similarity", "dist", "erfinv", "exp", "expm1", "frobenius_norm", "group_norm",
    "interpolate", "layer_norm", "log", "log10", "log1p", "log2", "logsumexp", "native_layer_norm", "norm",
    "normalize", "nuclear_norm", "pdist", "pow", "__pow__", "__rpow__", "reciprocal", "renorm", "rms_norm", "rsqrt",
    "sinh", "softplus", "tan",
)  # fmt: skip
# Those compute in float32 without a copy of their input.
RESULT_FLOAT32 = ("cumprod", "cumsum", "linalg_vector_norm", "log_softmax", "softmax", "sum")
# In float32 on a CPU, as they come on a GPU.
AS_THEY_COME = (
    "adaptive_avg_pool3d", "adaptive_max_pool3d", "avg_pool3d", "grid_sample", "max_pool3d", "nanquantile",
    "quantile", "stft",
)  # fmt: skip
OTHERWISE = frozenset(FLOAT32 + RESULT_FLOAT32 + AS_THEY_COME)
HALF = (torch.float16, torch.bfloat16)


class LikeCUDA(TorchFunctionMode):
    """Where a CPU's autocast is on, functions compute in the precision that a GPU's would give them.

    torch takes the mode away while `backward` runs: what is computed again there has to enter it anew.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, options = getattr(func, "__name__", ""), dict(kwargs or {})
        if name not in OTHERWISE or not torch.is_autocast_enabled("cpu"):
            return func(*args, **options)
        if name in FLOAT32:
            args, options = tree_map_only(Tensor, _to_float32, (args, options))
        if name in RESULT_FLOAT32 and isinstance(args[0], Tensor) and args[0].dtype in HALF:
            options.setdefault("dtype", torch.float32)
        with torch.autocast("cpu", enabled=False):
            return func(*args, **options)


def _to_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor
