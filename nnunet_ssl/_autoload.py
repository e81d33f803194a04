"""The hook that lets stock nnU-Net find the classes of its plugins.

torch calls `autoload` at the end of `import torch` (entry-point group `torch.backends`, off with
TORCH_DEVICE_BACKEND_AUTOLOAD=0); `import nnunet_ssl` calls it too. torch turns any exception in here into a failed
`import torch`, so nothing may raise, warnings included: they are exceptions under `-W error`. Only the standard library
is imported before nnU-Net itself calls one of the wrapped functions.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def find_class(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """nnU-Net's class look-up, then the plugins'."""
    from nnunet_ssl.integration.class_lookup import find

    return find(stock, *args, **kwargs)


def load_weights(stock: Callable[..., None], network: Any, fname: str, verbose: bool = False) -> None:
    """nnU-Net's -pretrained_weights, adapting where the file does not fit as it is."""
    from nnunet_ssl.integration.pretrained_weights import load

    load(network, fname, verbose, stock)


def build_network(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """nnU-Net's networks from plans, with a word about what would be imported by name."""
    from nnunet_ssl.integration.architecture import build_for_stock

    return build_for_stock(stock, *args, **kwargs)


class Torch(ModuleType):
    """`torch` as the modules of nnU-Net see it that open checkpoints: all of it but `load` is torch's own."""

    def __init__(self, torch: ModuleType, opener: str) -> None:
        super().__init__(torch.__name__)
        self.nnunet_ssl_stock, self.nnunet_ssl_opener = torch, opener

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["nnunet_ssl_stock"], name)

    def load(self, *args: Any, **kwargs: Any) -> Any:
        """torch.load, by our reader."""
        from nnunet_ssl.integration.opening import load

        return load(*args, opener=self.nnunet_ssl_opener, **kwargs)


REPLACEMENTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "nnunetv2.utilities.find_class_by_name": ("recursive_find_python_class", find_class),
    "nnunetv2.run.load_pretrained_weights": ("load_pretrained_weights", load_weights),
    "nnunetv2.utilities.get_network_from_plans": ("get_network_from_plans", build_network),
}
OPENERS = (
    "nnunetv2.run.load_pretrained_weights",
    "nnunetv2.inference.predict_from_raw_data",
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
    "nnunetv2.training.nnUNetTrainer.variants.lr_schedule.nnUNetTrainer_warmup",
)
CHANGED = frozenset({*REPLACEMENTS, *OPENERS})


def autoload() -> None:
    """Register with nnU-Net in this process; calling it again changes nothing, and it never raises."""
    try:
        if not any(isinstance(finder, PostImport) for finder in sys.meta_path):
            finder = PostImport()
            sys.meta_path.insert(0, finder)
            for name in CHANGED:
                if name in sys.modules and not replace(sys.modules[name]):
                    finder.unfinished.add(name)
    except Exception as error:
        complain(error)


class PostImport:
    """Finder that finds nothing itself: it has the modules of CHANGED changed right after they were executed."""

    def __init__(self) -> None:
        # Modules whose own imports led here, so that their functions do not exist yet. The next import tries again.
        self.unfinished: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of another finder with a changed `exec_module` for CHANGED, None for everything else."""
        try:
            for name in tuple(self.unfinished):
                if name not in sys.modules or replace(sys.modules[name]):
                    self.unfinished.discard(name)
            return self._changed_spec(fullname, path, target) if fullname in CHANGED else None
        except Exception as error:
            complain(error)
            return None

    def _changed_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((s for s in (finder.find_spec(fullname, path, target) for finder in others) if s), None)
        if spec is not None and spec.loader is not None:
            # Set on the instance: type of the loader, __spec__ and inspect.getsource stay as they are.
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                replace(module)

            loader.exec_module = exec_module
        return spec


def replace(module: ModuleType) -> bool:
    """Change what a loaded module of nnU-Net does for us; False when that does not exist yet."""
    try:
        done = [
            change(module) for names, change in ((OPENERS, guard), (REPLACEMENTS, wrap)) if module.__name__ in names
        ]
        return all(done)
    except Exception as error:
        complain(error)
        return True


def guard(module: ModuleType) -> bool:
    """Have a module's `torch.load` done by our reader; False while the module may still bind `torch` anew."""
    torch = vars(module).get("torch")
    if torch is not None and not isinstance(torch, Torch):
        vars(module)["torch"] = Torch(torch, module.__name__)
    return torch is not None and not getattr(module.__spec__, "_initializing", False)


def wrap(module: ModuleType) -> bool:
    """Wrap the function of a loaded module, wherever it is bound by now; False when it does not exist yet."""
    name, replacement = REPLACEMENTS[module.__name__]
    stock = vars(module).get(name)
    if stock is None:
        return False
    if getattr(stock, "nnunet_ssl", False):
        return True

    @functools.wraps(stock)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return replacement(stock, *args, **kwargs)

    wrapper.nnunet_ssl = True  # type: ignore[attr-defined]
    for other in list(sys.modules.values()):
        if getattr(other, "__dict__", {}).get(name) is stock:
            setattr(other, name, wrapper)
    return True


def complain(error: Exception) -> None:
    """Say on stderr that registering failed."""
    try:
        print(
            f"nnunet_ssl could not register with nnU-Net: {type(error).__name__}: {error}. "
            "Run `nnunet-ssl doctor`; `nnunet-ssl nnUNetv2_train ...` may still work.",
            file=sys.stderr,
        )
    except Exception:  # stderr may be closed
        return
