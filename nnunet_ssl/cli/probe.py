"""What `nnunet-ssl doctor` finds out in a fresh process, which must not know nnunet_ssl before torch does."""


def probe() -> None:
    """Print one JSON line about torch, the registration with nnU-Net, and every plugin.

    The doctor sends this function's source to another interpreter, so it needs to hold all its imports.
    """
    import importlib
    import json
    import traceback
    from importlib.metadata import entry_points
    from typing import Any

    found: dict[str, Any] = {"errors": {}, "plugins": []}

    def importable(name: str) -> bool:
        try:
            importlib.import_module(name)
        except BaseException as error:
            found["errors"][name] = f"{type(error).__name__}: {error}"
            return False
        return True

    if importable("torch"):
        import torch

        found["hook"] = False
        if importable("nnunetv2.utilities.find_class_by_name"):
            lookup = importlib.import_module("nnunetv2.utilities.find_class_by_name").recursive_find_python_class
            found["hook"] = getattr(lookup, "nnunet_ssl", False)
        found["cuda_build"] = torch.version.cuda or torch.version.hip
        found["cuda"] = torch.cuda.is_available()
        found["gpus"] = (
            [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if found["cuda"] else []
        )
        found["bf16"] = found["cuda"] and torch.cuda.is_bf16_supported(including_emulation=False)
        found["threads"] = torch.get_num_threads()
        importable("torchvision")
        importable("timm")
        groups = ("trainers", "planners", "preprocessors", "normalization", "resampling")
        for group in [*(f"nnunetv2.{name}" for name in groups), "nnunet_ssl.methods"]:
            for entry in sorted(entry_points(group=group), key=lambda e: e.name):
                plugin = {"group": group, "name": entry.name, "package": entry.dist.name if entry.dist else "?"}
                try:
                    plugin["is"] = entry.load().__name__
                except BaseException as error:
                    plugin["error"] = "".join(traceback.format_exception_only(type(error), error)).strip()
                if plugin not in found["plugins"]:
                    found["plugins"].append(plugin)
    print("\n" + json.dumps(found))
