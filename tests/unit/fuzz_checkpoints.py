"""Thousands of damaged and forged checkpoints, each read and adapted; a program, because a crash would end it.

    python tests/unit/fuzz_checkpoints.py FOLDER COUNT SEED

prints the outcomes as JSON; the same COUNT and SEED repeat a run. What our reader accepts is read by others as well
(Python's zipfile, torch without mapped memory, a reader of safetensors in ten lines), which must find the same.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from safetensors.torch import save_file
from torch import nn

SECONDS_PER_CASE = 5
MEMORY = 1 << 30  # bytes of addresses beyond what the program has when it begins
EACH = ("content", "bytes", "zip", "container", "old", "safetensors", "header")


def unet(channels: int = 1) -> nn.Module:
    norm = (nn.InstanceNorm3d, {"eps": 1e-5, "affine": True})
    network = (nn.Conv3d, 3, [1, 2], [1, 1], 2, [1], True, *norm)
    return ResidualEncoderUNet(channels, 2, [2, 4], *network, nonlin=nn.LeakyReLU)


def primus(size: int = 4) -> nn.Module:
    return Primus(1, 12, (2,) * 3, 2, eva_depth=1, eva_numheads=2, input_shape=(size,) * 3, init_values=0.1)


def good_checkpoints() -> dict[str, dict[str, Any]]:
    """One checkpoint of each writer, with everything around the weights that the readers look at."""
    torch.manual_seed(0)
    configuration = {"patch_size": [8, 8, 8], "architecture": {"network_class_name": "a.b.ResidualEncoderUNet"}}
    plans = {"configurations": {"3d_fullres": configuration}, "experiment_planner_used": "nnUNetPlannerResEncL"}
    dataset = {"channel_names": {"0": "T1"}}
    plan = {
        "architecture_plans": {"arch_class_name": "PrimusX", "arch_kwargs": {"encoder_eva_numheads": 2}},
        "pretrain_plan": {"configurations": {"onemmiso": {"patch_size": [4, 4, 4], "spacing": [1, 1, 1]}}},
        "pretrain_num_input_channels": 1,
        "pretrain_patch_size": (4, 4, 4),
        "key_to_lpe": "eva.pos_embed",
    }
    swapped = deepcopy(plan)
    swapped["architecture_plans"]["arch_class_name"] = "PrimusM"
    wrapped = {f"module.encoder.{name}": tensor for name, tensor in primus().state_dict().items()}
    ssl = {"method": "mae", "patch_size": [4, 4, 4], "token_order": "natural", "num_input_channels": 1}
    return {
        "stock": {
            "network_weights": unet().state_dict(),
            "trainer_name": "nnUNetTrainer",
            "logging": {"dice": [[np.float64(0.5)]], "epoch": [np.int64(1)]},
            "_best_ema": np.float64(0.75),
            "init_args": {"plans": plans, "configuration": "3d_fullres", "dataset_json": dataset, "fold": 0},
            "optimizer_state": {
                "state": {0: {"step": torch.tensor(3.0)}},
                "param_groups": [{"lr": 0.1, "params": [0]}],
            },
        },
        "ours": {"network_weights": primus().state_dict(), "ssl": ssl, "trainer_name": "SSLMAETrainer"},
        "nnssl": {"network_weights": wrapped, "trainer_name": "VoCoEvaTrainer", "nnssl_adaptation_plan": swapped},
        "nnFoundation": {"network_weights": primus().state_dict(), "nnssl_adaptation_plan": plan, "citations": []},
        "bare": dict(unet(2).state_dict()),
    }


SCALARS = [None, -1, 0, 10**12, 2**200, 1.5, float("nan"), True, "x" * 1000, "SSLMAETrainer", b"\x00"]
NESTED = [[], {}, {"a": {"b": [1, (2,)]}}, [[[]]], [4, 4], ["4", 4, 4], (10**9,) * 3, (0, 4, 4), torch.zeros(3)]
JUNK: list[Any] = [*SCALARS, *NESTED]
TENSORS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda t: t.half(),
    lambda t: t.bfloat16(),
    lambda t: t.double(),
    lambda t: t.to(torch.int8),
    lambda t: t.to(torch.complex64),
    lambda t: t > 0,
    lambda t: torch.full_like(t, float("nan")),
    lambda t: torch.full_like(t, float("inf")),
    lambda t: t.flatten(),
    lambda t: t[..., :1],
    lambda t: t[None],
    lambda t: torch.cat([t, t]),
    lambda t: torch.zeros(()),
    lambda t: torch.zeros(0, 3),
    lambda t: torch.zeros((0,) * max(1, t.ndim)),
    lambda t: t.transpose(0, -1) if t.ndim > 1 else t,
    lambda t: torch.zeros(1).expand(10**4),
    lambda t: t.to_sparse(),
    lambda t: t.to(torch.float8_e4m3fn),
    lambda t: nn.Parameter(t),
]


def places(value: Any, depth: int = 0) -> list[tuple[dict[Any, Any], Any]]:
    """Every entry of every dictionary in a checkpoint."""
    if not isinstance(value, dict) or depth > 8:
        return []
    return [place for key, item in value.items() for place in [(value, key), *places(item, depth + 1)]]


def forge(checkpoint: dict[str, Any], dice: random.Random) -> None:
    """Change a checkpoint's content in one to three places."""
    for _ in range(dice.randint(1, 3)):
        holder, key = dice.choice(places(checkpoint))
        how = dice.random()
        value = holder[key]
        if how < 0.5 and isinstance(value, torch.Tensor) and value.is_floating_point():
            holder[key] = dice.choice(TENSORS)(value)
        elif how < 0.7:
            holder[key] = deepcopy(dice.choice(JUNK))
        elif how < 0.9 and isinstance(key, str):
            parts = key.split(".")
            number = dice.randrange(len(parts))
            parts[number] = dice.choice(
                ["", "0", "-1", "eva", "encoder", "999999999", "stages.x", "decoder.encoder", "é" * 90]
            )
            holder[".".join(parts)] = holder.pop(key)
        elif how < 0.95:
            del holder[key]
        else:
            holder[dice.choice([3, None, (1, (2,)), "weight", "module." * 80 + "x", "a." * 400])] = value


def garble(content: bytes, dice: random.Random) -> bytes:
    """Change a file's bytes."""
    data, how = bytearray(content), dice.random()
    early = dice.random() < 0.7  # headers and pickles come first
    where = dice.randrange(min(len(data), 3000) if early else len(data))
    if how < 0.5:
        for _ in range(dice.randint(1, 8)):
            data[min(len(data) - 1, where + dice.randrange(40))] = dice.randrange(256)
    elif how < 0.65:
        del data[where:]
    elif how < 0.75:
        del data[where : where + dice.randint(1, 64)]
    elif how < 0.85:
        data[where:where] = bytes(dice.randrange(256) for _ in range(dice.randint(1, 64)))
    else:
        data[where : where + 4] = struct.pack("<I", dice.choice([0, 1, 2**31 - 1, 2**32 - 1, len(data)]))
    return bytes(data)


def rezip(path: Path, dice: random.Random) -> None:
    """Change the members of a zip file, keeping every checksum right."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    how, (a, b) = dice.random(), dice.sample(range(len(members)), 2)
    compression = zipfile.ZIP_STORED
    if how < 0.3:
        members[a], members[b] = (members[a][0], members[b][1]), (members[b][0], members[a][1])
    elif how < 0.6:
        number = next(i for i, (name, _) in enumerate(members) if name.endswith("data.pkl"))
        members[number] = (members[number][0], garble(members[number][1], dice))
    elif how < 0.7:
        members[a] = (members[a][0], members[a][1][: len(members[a][1]) // 2])
    elif how < 0.8:
        members[a] = (dice.choice(["../../out", "/out", "C:x", "data.pkl", "x/data.pkl"]), members[a][1])
    elif how < 0.9:
        del members[a]
    else:
        compression = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)


RECORDS = {b"PK\x03\x04": 30, b"PK\x01\x02": 46, b"PK\x05\x06": 22, b"PK\x06\x06": 56, b"PK\x06\x07": 20}


def recontain(path: Path, dice: random.Random) -> None:
    """Change a zip file's own records, so that readers may disagree on what is in it."""
    content = path.read_bytes()
    table = content.index(b"PK\x01\x02")
    how = dice.random()
    if how < 0.5:  # one or two numbers in one or two records
        data = bytearray(content)
        for _ in range(dice.randint(1, 2)):
            magic, length = dice.choice(list(RECORDS.items()))
            places = [i for i in range(len(data)) if data[i : i + 4] == magic]
            where = dice.choice(places) + dice.randrange(0, length, 2) if places else 0
            value = dice.choice([0, 1, 8, 0xFFFF, 0xFFFFFFFF, len(data), table, dice.randrange(len(data))])
            data[where : where + 4] = struct.pack("<I", value)
        content = bytes(data)
    elif how < 0.6:  # a second table
        other = bytearray(content[table:])
        for _ in range(3):
            other[dice.randrange(len(other))] = dice.randrange(256)
        content = content + bytes(other)
    elif how < 0.7:  # a second archive
        content = content + content if dice.random() < 0.5 else content[:table] + content
    elif how < 0.8:  # something around it
        more = bytes(dice.randrange(256) for _ in range(dice.randint(1, 40)))
        content = dice.choice([more + content, content + more, content[:table] + more + content[table:]])
    else:  # twins
        path.write_bytes(content)
        with zipfile.ZipFile(path, "a") as archive:
            name = dice.choice(archive.namelist())
            twin = dice.choice(
                [name.upper(), name.title(), name.replace("/", "\\"), f"./{name}", f"x/{name}", name + "\0x"]
            )
            if twin not in archive.namelist():
                archive.writestr(twin, dice.choice([b"", archive.read(name), garble(archive.read(name) + b"x", dice)]))
        return
    path.write_bytes(content)


def reheader(path: Path, dice: random.Random) -> None:
    """Change one entry of a safetensors header."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    entry = header[dice.choice([name for name in header if name != "__metadata__"])]
    field = dice.choice(["dtype", "shape", "data_offsets"])
    entry[field] = {
        "dtype": lambda: dice.choice(["F64", "F8_E4M3", "C64", "I8", "Q", 3, None]),
        "shape": lambda: dice.choice([[], [0], [2**62, 4], [10**12], [-1], ["1"], None, entry["shape"][::-1]]),
        "data_offsets": lambda: dice.choice([[0, 4 * 10**12], [0, 0], [8, 4], [-4, 0], [0], None, [0, 2**64 - 1]]),
    }[field]()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def write_case(path: Path, originals: dict[str, dict[str, Any]], dice: random.Random) -> str:
    """Write one bad file, and say what was done to it."""
    name = dice.choice(list(originals))
    checkpoint, how = (
        deepcopy(originals[name]),
        dice.choice(EACH),
    )
    if how in ("safetensors", "header"):
        weights = checkpoint.get("network_weights", checkpoint)
        save_file({key: tensor.clone() for key, tensor in weights.items()}, path, {"format": "pt"})
        if how == "header":
            reheader(path, dice)
        else:
            path.write_bytes(garble(path.read_bytes(), dice))
        return f"{name}, {how}"
    if how == "content":
        forge(checkpoint, dice)
    torch.save(checkpoint, path, _use_new_zipfile_serialization=how != "old")
    if how == "zip":
        rezip(path, dice)
    elif how == "container":
        recontain(path, dice)
    elif how != "content":
        path.write_bytes(garble(path.read_bytes(), dice))
    return f"{name}, {how}"


class DifferenceError(AssertionError):
    """Another reader finds something else in a file that ours accepted."""


def compare_readers(path: Path, checkpoint: dict[str, Any]) -> None:
    """Raise DifferenceError where another reader finds something else in a file than ours did."""
    start = path.read_bytes()[:9]
    if start[:4] == b"PK\x03\x04":
        theirs = torch._C.PyTorchFileReader(str(path))
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            root = names[0].partition("/")[0]
            found = {name: stored(archive, name) for name in names}
        if sorted(theirs.get_all_records()) != sorted(name.removeprefix(f"{root}/") for name in names):
            raise DifferenceError("torch's reader finds other members")
        for name, content in found.items():
            if theirs.get_record(name.removeprefix(f"{root}/")) != content:
                raise DifferenceError(f"torch's reader finds other bytes in {name}")
    if start[8:] == b"{":
        return compare_safetensors(path, checkpoint)
    from nnunet_ssl.checkpoints.screening.numpy_scalars import safe_numpy_scalars

    with torch.serialization.safe_globals(safe_numpy_scalars()):
        other = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    if fingerprint(other) != fingerprint(checkpoint):
        raise DifferenceError("torch reads other values without mapped memory")
    return None


def stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member's bytes; torch does not compare the checksums of tensors, and can be told not to write any."""
    with archive.open(name) as member:
        member._expected_crc = None  # type: ignore[attr-defined]
        return member.read()


def compare_safetensors(path: Path, checkpoint: dict[str, Any]) -> None:
    """Read as the format's page says, and compare the tensors' bytes."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    if set(header) != set(checkpoint):
        raise DifferenceError("another reader of safetensors finds other tensors")
    for name, tensor in checkpoint.items():
        first, last = header[name]["data_offsets"]
        if list(tensor.shape) != header[name]["shape"] or fingerprint(tensor)[-1] != data[first:last]:
            raise DifferenceError(f"another reader of safetensors finds other values in {name}")


def fingerprint(value: Any) -> Any:
    """A nested structure as text and bytes, which also compare where there is NaN."""
    if isinstance(value, torch.Tensor):
        values = value.detach().contiguous().flatten().view(torch.uint8) if value.numel() else torch.zeros(0)
        return str(value.dtype), tuple(value.shape), values.numpy().tobytes()
    if isinstance(value, dict):
        return [(repr(key), fingerprint(item)) for key, item in value.items()]
    return [fingerprint(item) for item in value] if isinstance(value, (list, tuple)) else repr(value)


def refused(when: str, error: Exception) -> str:
    """The outcome of a refusal, which must fit on a screen."""
    assert len(str(error)) < 2500, "an endless error text"
    return f"refused {when}"


def load_into(path: Path, targets: list[nn.Module]) -> str:
    """What a user's command does with a file; the outcome in a word. Raises whatever is not a clean refusal."""
    from nnunet_ssl.checkpoints.adaptation.adapt import adapt_checkpoint
    from nnunet_ssl.checkpoints.read import read_checkpoint
    from nnunet_ssl.errors import CheckpointError

    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        return refused("on reading", error)
    compare_readers(path, checkpoint)
    outcome = "refused on adapting"
    for target in targets:
        for channels in ("repeat", "by_name") if target is targets[0] else ("mean",):
            try:
                names = ["T1"] if channels == "by_name" else None
                state, report = adapt_checkpoint(checkpoint, target, channels=channels, target_channel_names=names)
                target.load_state_dict(state, strict=True)
                assert all(torch.isfinite(tensor).all() for tensor in state.values())
                json.dumps(report.to_json())
                report.table()
                report.raise_if_poor()
                outcome = "loaded"
            except CheckpointError as error:
                refused("on adapting", error)
    return outcome


def load_good(checkpoint: dict[str, Any], path: Path, targets: list[nn.Module]) -> list[str]:
    """The outcomes for an unchanged checkpoint in each format: otherwise refusals would prove nothing."""
    outcomes = []
    for zipped in (True, False):
        torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
        outcomes.append(load_into(path, targets))
    save_file({n: t.clone() for n, t in checkpoint.get("network_weights", checkpoint).items()}, path)
    return [*outcomes, load_into(path, targets)]


def fuzz(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Try `count` files; the outcomes, and every failure with what was done and where it went wrong."""
    originals, targets = good_checkpoints(), [unet(), primus(6)]
    good = {name: load_good(checkpoint, folder / "case.pth", targets) for name, checkpoint in originals.items()}
    path, outcomes, failures, differences = folder / "case.pth", Counter[str](), list[str](), 0
    warnings.filterwarnings("ignore", "Duplicate name")
    started, memory = time.process_time(), 0
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if sys.platform == "linux"
        else 15 << 30
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))

    def too_slow(*_: object) -> None:
        raise TimeoutError(f"longer than {SECONDS_PER_CASE} s")

    signal.signal(signal.SIGALRM, too_slow)
    for number in range(count):
        dice = random.Random(seed * 1_000_003 + number)
        torch.manual_seed(number)
        what = write_case(path, originals, dice)
        signal.alarm(SECONDS_PER_CASE)
        try:
            outcomes[load_into(path, targets)] += 1
        except BaseException as error:
            differences += isinstance(error, DifferenceError)
            failures.append(f"case {number} ({what}):\n{traceback.format_exc()[-1500:]}")
        finally:
            signal.alarm(0)
        memory = memory or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "unchanged": good,
        "outcomes": outcomes,
        "failures": failures[:5],
        "failed": len(failures),
        "differences": differences,
        "written": sorted(p.name for p in folder.iterdir() if p != path),
        "growth": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) // 1024,
        "seconds": time.process_time() - started,
    }


if __name__ == "__main__":
    print(json.dumps(fuzz(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
