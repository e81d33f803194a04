"""One value and one name per tensor: settle a state dict's copies and the prefixes wrapped around its names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping

from torch import Tensor

# ConvDropoutNormReLU registers its convolution and norm twice: by name and inside `all_modules`, which it runs.
UNIT = re.compile(r"^(?P<unit>.*\.)all_modules\.(?P<index>\d+)\.(?P<parameter>.+)$")
ENCODER_COPY = re.compile(r"^(?P<prefix>.*?)decoder\.encoder\.(?P<rest>.+)$")
NETWORK_ROOT = re.compile(r"^(?P<prefix>(?:\w+\.)*?)(?:eva\.blocks\.|encoder\.stages\.)")


def own_name(name: str) -> str:
    """The name that `all_modules.N` and `decoder.encoder` copies stand for; the name itself for all others."""
    copy = ENCODER_COPY.match(name)
    if copy:
        name = f"{copy['prefix']}encoder.{copy['rest']}"
    unit = UNIT.match(name)
    if unit:
        name = f"{unit['unit']}{'conv' if unit['index'] == '0' else 'norm'}.{unit['parameter']}"
    return name


def resolve_aliases(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the same names, with all copies of a tensor set to the one the network really ran.

    That is `encoder.*.all_modules.*`: SparK's conversion to sparse layers split the pairs, and left `conv` and `norm`
    untrained at their initial values.
    """
    best: dict[str, tuple[tuple[bool, bool], Tensor]] = {}
    for name, tensor in weights.items():
        key, rank = own_name(name), (".all_modules." in name, "decoder.encoder." not in name)
        if key not in best or rank > best[key][0]:
            best[key] = (rank, tensor)
    return {name: best[own_name(name)][1] for name in weights}


def without_wrapper(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what wraps the whole network, e.g. `encoder.eva.norm.bias` -> `eva.norm.bias` (nnssl's VoCo)."""
    prefixes = {found["prefix"] for name in weights if (found := NETWORK_ROOT.match(name))}
    return _strip(weights, min(prefixes, key=len, default=""))


def align_names(weights: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Names changed by the one prefix, taken off or put in front, with which most of the `wanted` names are found."""
    wanted = set(wanted)
    strip = _count_prefixes(weights, wanted)
    add = _count_prefixes(wanted, set(weights))
    take_off, found = _most_common(strip)
    put_in_front, found_by_adding = _most_common(add)
    if found_by_adding > found:
        return {put_in_front + name: tensor for name, tensor in weights.items()}
    return _strip(weights, take_off)


def _strip(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    if not prefix:
        return dict(weights)
    stripped = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
    return stripped | {n: t for n, t in weights.items() if not n.startswith(prefix) and n not in stripped}


def _count_prefixes(names: Collection[str] | Mapping[str, Tensor], endings: Collection[str]) -> Counter[str]:
    """How often each prefix, taken off one of `names`, leaves one of `endings`."""
    counts: Counter[str] = Counter()
    for name in names:
        starts = [0] + [dot.end() for dot in re.finditer(r"\.", name)]
        counts.update(name[:start] for start in starts if name[start:] in endings)
    return counts


def _most_common(counts: Counter[str]) -> tuple[str, int]:
    return min(counts.items(), key=lambda item: (-item[1], len(item[0])), default=("", 0))
