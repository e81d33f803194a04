"""Files made to harm: each is refused in clear words, before anything of it is run, imported, written or set aside."""

from __future__ import annotations

import io
import json
import pickle
import re
import resource
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from safetensors.torch import save_file
from torch import Tensor, nn

from nnunet_ssl.checkpoints.adaptation.adapt import adapt_checkpoint
from nnunet_ssl.checkpoints.adaptation.position_embedding import grid_of
from nnunet_ssl.checkpoints.read import network_weights, read_checkpoint
from nnunet_ssl.checkpoints.write import save_checkpoint
from nnunet_ssl.errors import CheckpointError

WEIGHTS = {"encoder.weight": torch.arange(12.0).reshape(3, 4)}


class Bomb:
    """Writes a file when unpickled by a loader that runs what it reads."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.witness)!r}, 'w').close()",)


def zip_with(path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def torch_zip(path: Path, data: bytes, **more: bytes) -> None:
    """A file in torch's format around the pickle `data`."""
    zip_with(path, {"a/data.pkl": data, "a/version": b"3\n", "a/byteorder": b"little", **more})


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def entry(value: bytes) -> bytes:
    """A pickle of {"a": value}."""
    return b"\x80\x02}" + text("a") + value + b"s."


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def tensor(numel: int, shape: tuple[int, ...], strides: tuple[int, ...], kind: str = "FloatStorage") -> bytes:
    """A tensor on the storage "0", in torch's own words."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text("0") + text("cpu") + number(numel) + b"tQ"
    sizes = b"(" + b"".join(map(number, shape)) + b"t(" + b"".join(map(number, strides)) + b"t"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + sizes + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def refuse(path: Path, match: str) -> str:
    """Refused with words that match; nothing is left beside the file, and memory does not grow."""
    before, there = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, sorted(path.parent.rglob("*"))
    with pytest.raises(CheckpointError, match=match) as caught:
        read_checkpoint(path)
    assert sorted(path.parent.rglob("*")) == there
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    assert len(str(caught.value)) < 2500
    return str(caught.value)


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint.pt", "model.safetensors", "model.ckpt"])
@pytest.mark.parametrize("how", ["zip", "old", "protocol 4", "zip in a tar", "bare pickle", "OrderedDict"])
def test_pickle_bombs_under_every_name_and_in_every_format(name: str, how: str, tmp_path: Path) -> None:
    path, witness = tmp_path / name, tmp_path / "exploded"
    content: Any = {"network_weights": WEIGHTS, "config": Bomb(witness)}
    if how == "OrderedDict":
        content = OrderedDict(content)
    if how == "bare pickle":
        path.write_bytes(pickle.dumps(content))
    elif how == "protocol 4":
        torch_zip(path, pickle.dumps({"config": Bomb(witness)}, protocol=4))
    elif how == "zip in a tar":
        with tarfile.open(path, "w") as archive:
            for member in ("sys_info", "pickle", "storages", "tensors"):
                data = pickle.dumps(Bomb(witness), protocol=2)
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how != "old")
    refuse(path, "tar archive" if how == "zip in a tar" else r"exec.*nothing of it was run")
    assert not witness.exists()


def test_nothing_a_file_names_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "files").mkdir()
    torch_zip(tmp_path / "files" / "a.pth", entry(b"cevil_module\nrun\n)R"))
    refuse(tmp_path / "files" / "a.pth", r"holds evil_module\.run")
    plan = {
        "architecture_plans": {"arch_class_name": "evil_module.Network", "arch_kwargs": {"conv_op": "evil_module.Conv"}}
    }
    torch.save(
        {"network_weights": plain_unet().state_dict(), "nnssl_adaptation_plan": plan}, tmp_path / "files" / "b.pth"
    )
    _, report = adapt_checkpoint(read_checkpoint(tmp_path / "files" / "b.pth"), plain_unet())
    assert report.encoder_fraction == 1.0
    assert report.source_info["architecture"] == "evil_module.Network"  # told, never looked up
    assert "evil_module" not in sys.modules
    assert not (tmp_path / "exploded").exists()


HOSTILE_PICKLES: dict[str, tuple[bytes, str]] = {
    "tensor of a TB by call": (
        entry(b"ctorch\nTensor\n" + number(10**12) + b"\x85R"),
        r"holds torch\.Tensor, which is no plain",
    ),
    "bytearray of 100 TB": (
        entry(b"c__builtin__\nbytearray\n" + number(10**14) + b"\x85R"),
        r"holds builtins\.bytearray",
    ),
    "storage of 4 TB": (entry(tensor(10**12, (10**12,), (1,))), "declares 4,000,000,000,000 bytes .* file holds 16"),
    "negative storage": (entry(tensor(-1, (1,), (1,))), "in a way torch never writes"),
    "expanded to a TB": (entry(tensor(4, (10**6, 10**6), (0, 0))), r"shape \(1000000, 1000000\), more values"),
    "shape larger than its storage": (entry(tensor(4, (100,), (1,))), "damaged|more values|bounds|storage"),
    "negative shape": (entry(tensor(4, (-2,), (1,))), "in a way torch never writes"),
    "outside of its storage": (entry(tensor(4, (2, 2), (2, 2))), "lies outside of its storage"),
    "shape as a list": (entry(tensor(4, (4,), (1,)).replace(b"(\x8a\x01\x04t", b"](\x8a\x01\x04e")), "never writes"),
    "shape by a call": (
        entry(tensor(4, (4,), (1,)).replace(b"(\x8a\x01\x04t", b"ctorch\nSize\n(\x8a\x01\x04t\x85R")),
        "in a way torch never writes",
    ),
    "another storage as a state": (entry(tensor(4, (4,), (1,)) + b")b"), "gives a state to something"),
    "65 axes": (entry(tensor(4, (1,) * 65, (1,) * 65)), "65 axes, more than 32"),
    "100,000 axes": (entry(tensor(4, (1,) * 10**5, (1,) * 10**5)), "100,000 axes, more than 32"),
    "quantised": (entry(tensor(4, (4,), (1,), "QInt8Storage")), r"holds torch\.QInt8Storage"),
    "unknown storage": (entry(tensor(4, (4,), (1,), "NoStorage")), r"holds torch\.NoStorage"),
    "sparse": (entry(b"ctorch._utils\n_rebuild_sparse_tensor\n)R"), "_rebuild_sparse_tensor, which is no plain tensor"),
    "without values": (entry(b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n)R"), "no plain tensor"),
    "tensor of a class": (entry(b"ctorch._tensor\n_rebuild_from_type_v2\n)R"), "no plain tensor"),
    "a million tuples as a key": (b"\x80\x02})" + b"\x85" * 10**6 + b"Ns.", "nests tuples more than 64 levels"),
    "100,000 lists": (entry(b"]" * 10**5 + b"a" * (10**5 - 1)), "nested more than 64 levels"),
    "doubling lists": (
        entry(b"(" + b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(40)) + b"t"),
        "repeats its parts more than 200,000 times",
    ),
    "a list within itself": (entry(b"]q\x00h\x00a"), "nested more than 64 levels"),
    "text of 4 GB": (b"\x80\x02}X\xff\xff\xff\xffabc", "damaged"),
    "text encoded by a codec": (
        entry(b"c_codecs\nencode\n" + text("a") + text("idna") + b"\x86R"),
        "encodes text in a way",
    ),
    "numpy scalar of objects": (entry(b"cnumpy\ndtype\n" + text("O8") + b"\x89\x88\x87R"), "no number"),
    "numpy scalar with too many bytes": (
        entry(
            b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + text("f8") + b"\x89\x88\x87R"
            b"c_codecs\nencode\n" + text("x" * 99) + text("latin1") + b"\x86R\x86R"
        ),
        "too many or too few",
    ),
    "dictionary with attributes": (
        entry(b"ccollections\nOrderedDict\n)R}" + text("items") + b"Nsb"),
        "attributes of its own",
    ),
    "operation torch never writes": (entry(b"\x8c\x01a"), "SHORT_BINUNICODE, which torch never writes"),
    "import by strings": (entry(text("builtins") + text("eval") + b"\x93"), r"holds builtins\.eval"),
}


@pytest.mark.parametrize("what", HOSTILE_PICKLES)
def test_pickles_made_to_exhaust_or_crash(what: str, tmp_path: Path) -> None:
    data, match = HOSTILE_PICKLES[what]
    torch_zip(tmp_path / "a.pth", data, **{"a/data/0": b"\0" * 16})
    refuse(tmp_path / "a.pth", match)


def test_the_words_used_above_make_a_good_file(tmp_path: Path) -> None:
    """Otherwise they would be refused for being badly written."""
    torch_zip(tmp_path / "a.pth", entry(tensor(4, (2, 2), (2, 1))), **{"a/data/0": struct.pack("<4f", 1, 2, 3, 4)})
    assert torch.equal(read_checkpoint(tmp_path / "a.pth")["a"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def test_old_format_declaring_more_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"K\x0c") == 1  # the 12 values of the storage
    path.write_bytes(content.replace(b"K\x0c", number(10**12)))
    refuse(path, "declares 4,000,000,000,000 bytes")


@pytest.mark.parametrize("what", ["a storage not listed", "bytes missing", "bytes behind", "fewer values"])
def test_old_format_without_the_bytes_of_its_tensors(what: str, tmp_path: Path) -> None:
    """torch leaves such a tensor as it finds it: it holds whatever lay in the memory."""
    path = tmp_path / "a.pth"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    (key,) = re.findall(rb"]q\x00(X.{4}\d+q\x01a)\.", content, re.DOTALL)
    before, _, after = content.rpartition(key)
    path.write_bytes(
        {
            "a storage not listed": before + after,
            "bytes missing": content[:-4],
            "bytes behind": content + b"1234",
            "fewer values": content.replace(struct.pack("<Q", 12), struct.pack("<Q", 11))[:-4],
        }[what]
    )
    refuse(path, "does not list the bytes|not all there")


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "..\\outside", "C:outside"])
def test_members_that_point_outside(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    refuse(path, "points outside of the archive")


def test_archives_that_expand_or_repeat(tmp_path: Path) -> None:
    zip_with(tmp_path / "bomb.pth", {"a/data.pkl": b"\0" * 10**7, "a/version": b"3"}, zipfile.ZIP_DEFLATED)
    refuse(tmp_path / "bomb.pth", r"compressed member, a/data\.pkl")
    torch.save(WEIGHTS, tmp_path / "twice.pth")
    with zipfile.ZipFile(tmp_path / "twice.pth", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("twice/data.pkl", entry(b"N"))
    refuse(tmp_path / "twice.pth", "names a member twice")


def copy_of(path: Path, members: Mapping[str, bytes]) -> bytes:
    zip_with(path, members)
    content = path.read_bytes()
    path.unlink()
    return content


GOOD = {"a/data.pkl": entry(b"K\x07"), "a/version": b"3\n"}
EVIL = {"a/data.pkl": entry(b"K\x08"), "a/version": b"3\n"}
SIGNATURE = {"table": b"PK\x01\x02", "end": b"PK\x05\x06", "first": b"PK\x03\x04"}


def changed(content: bytes, part: str, place: int, value: bytes) -> bytes:
    """An archive with other bytes so far into one of its records."""
    start = content.rindex(SIGNATURE[part]) if part == "end" else content.index(SIGNATURE[part])
    return content[: start + place] + value + content[start + place + len(value) :]


ARCHIVES: dict[str, tuple[Callable[[Callable[[Mapping[str, bytes]], bytes]], bytes], str]] = {
    "two, one after the other": (lambda zipped: zipped(GOOD) + zipped(EVIL), "understand differently"),
    "a second table": (
        lambda zipped: zipped(GOOD) + zipped(EVIL)[zipped(EVIL).index(SIGNATURE["table"]) :],
        "understand differently",
    ),
    "something before it": (lambda zipped: b"x" * 64 + zipped(GOOD), "something before it"),
    "something behind it": (lambda zipped: zipped(GOOD) + b"x" * 64, "damaged"),
    "a comment": (lambda zipped: changed(zipped(GOOD), "end", 20, b"\x05\0") + b"hello", "damaged"),
    "other case": (lambda zipped: zipped({**GOOD, "a/DATA.PKL": entry(b"N")}), "names a member twice"),
    "other folder": (lambda zipped: zipped({**GOOD, "b/data/0": b"1"}), "beside the folder torch writes"),
    "pickle below": (lambda zipped: zipped({**GOOD, "a/a/data.pkl": b"1"}), "beside the folder torch writes"),
    "a name with a zero": (
        lambda zipped: zipped({**GOOD, "a/xy": b"1"}).replace(b"a/xy", b"a/\0y"),
        "unprintable name",
    ),
    "compressed in one header": (lambda zipped: changed(zipped(GOOD), "first", 8, b"\x08\0"), "says something else"),
    "other size in one header": (lambda zipped: changed(zipped(GOOD), "first", 22, b"\x01"), "says something else"),
    "other name in one header": (lambda zipped: changed(zipped(GOOD), "first", 30, b"b"), "says something else"),
    "a member in another": (lambda zipped: changed(zipped(GOOD), "table", 42, b"\x01"), "overlap or leave gaps"),
    "more members than entries": (lambda zipped: changed(zipped(GOOD), "end", 8, b"\x03\0\x03\0"), "cut|does not lie"),
    "marked as a folder": (lambda zipped: changed(zipped(GOOD), "table", 38, b"\x10"), "understand differently"),
    "of a version to come": (lambda zipped: changed(zipped(GOOD), "table", 6, b"\xff"), "understand differently"),
    "encrypted": (lambda zipped: changed(zipped(GOOD), "table", 8, b"\x01"), "is encrypted"),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_archives_in_which_readers_find_different_files(what: str, tmp_path: Path) -> None:
    build, match = ARCHIVES[what]
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.pth").write_bytes(build(lambda members: copy_of(tmp_path / "a.zip", members)))
    refuse(tmp_path / "files" / "a.pth", match)


def test_an_archive_on_several_disks_is_damaged_for_reading_and_for_the_next_save(tmp_path: Path) -> None:
    """Python's zipfile raises when it is asked whether such a file is an archive."""
    path = tmp_path / "a.pth"
    torch.save(WEIGHTS, path)
    content = path.read_bytes()
    locator = content.rindex(b"PK\x06\x07")
    path.write_bytes(content[: locator + 16] + struct.pack("<L", 2) + content[locator + 20 :])
    refuse(path, "understand differently|damaged|truncated")
    save_checkpoint(WEIGHTS, path, keep_previous=True)
    assert torch.equal(read_checkpoint(path)["encoder.weight"], WEIGHTS["encoder.weight"])


def test_archives_as_torch_and_python_write_them_are_read(tmp_path: Path) -> None:
    """Otherwise the changes above would prove nothing."""
    (tmp_path / "a.pth").write_bytes(copy_of(tmp_path / "a.zip", GOOD))
    assert read_checkpoint(tmp_path / "a.pth") == {"a": 7}
    with (tmp_path / "b.pth").open("wb") as file:
        torch.save(WEIGHTS, file)
    torch.save(WEIGHTS, tmp_path / "weights of étienne.pth")
    for name in ("b.pth", "weights of étienne.pth"):
        assert torch.equal(read_checkpoint(tmp_path / name)["encoder.weight"], WEIGHTS["encoder.weight"])


def test_pickle_whose_checksum_is_wrong_is_not_opened_unseen(tmp_path: Path) -> None:
    """torch's reader does not look at it, so what it would open could not be looked through before."""
    path = tmp_path / "a.pth"
    torch_zip(path, entry(b"K\x07"))
    path.write_bytes(path.read_bytes().replace(b"K\x07", b"K\x08"))
    refuse(path, "damaged: Bad CRC-32")


def safetensors(path: Path, header: Any, data: bytes = b"") -> None:
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(written)) + written + data)


HEADERS: dict[str, tuple[Any, str]] = {
    "65 axes": ({"a": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}}, "65 axes, more than 32"),
    "20 MB": (b'{"__metadata__":{"a":"' + b"x" * 20_000_000 + b'"}}', "header of 20,000,0.. bytes"),
    "4 TB": ({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, "damaged or no safetensors"),
    "overflowing shape": ({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}, "(?i)overflow"),
    "overlapping": (
        {k: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for k in "ab"},
        "(?i)invalid ?offset",
    ),
    "a name twice": (
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        "names a twice",
    ),
    "8 bits": ({"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, "type 'F8_E4M3' in a, expected F64"),
    "complex": ({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, "type 'C64'"),
    "deep": (b'{"a":' * 10**5 + b"1" + b"}" * 10**5, "nests its header too deep"),
    "no JSON": (b"{" * 50, "no JSON"),
    "list": (b'{"a":[1,2]}', "type None in a"),
}


@pytest.mark.parametrize("what", HEADERS)
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_safetensors_headers(what: str, name: str, tmp_path: Path) -> None:
    header, match = HEADERS[what]
    safetensors(tmp_path / name, header, b"\0" * 8)
    refuse(tmp_path / name, match)


def test_metadata_of_our_own_safetensors_are_not_believed_either(tmp_path: Path) -> None:
    for config in ("[" * 10**5, "{}", '{"ssl": 3}'):
        metadata = {"nnunet_ssl": "1", "names": '["nowhere"]', "aliases": "{}", "config": config}
        save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors", metadata)
        refuse(tmp_path / "a.safetensors", "metadata .* are damaged")


# ---- files that read well, but hold no weights one could use -------------------------------------------------------------


def plain_unet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    norm = (nn.BatchNorm3d, {"eps": 1e-5, "affine": True})  # with counters of whole numbers
    return PlainConvUNet(1, 2, [4, 4], nn.Conv3d, 3, [1, 2], [1, 1], 2, [1], True, *norm, nonlin=nn.LeakyReLU)


CHANGES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "NaN": (lambda t: torch.full_like(t, float("nan")), "NaN or infinite"),
    "infinite": (lambda t: torch.full_like(t, float("inf")), "NaN or infinite"),
    "whole numbers": (lambda t: t.to(torch.int8), r"holds torch\.int8, expected floating point"),
    "complex": (lambda t: t.to(torch.complex64), r"holds torch\.complex64"),
    "truth values": (lambda t: t > 0, r"holds torch\.bool"),
    "8 bits": (lambda t: t.to(torch.float8_e4m3fn), r"Float8|holds torch\.float8"),
    "sparse": (lambda t: t.to_sparse(), "no plain tensor"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_weights_that_are_none(what: str, tmp_path: Path) -> None:
    change, match = CHANGES[what]
    torch.save({n: change(t) if t.ndim == 5 else t for n, t in plain_unet().state_dict().items()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=match):
        adapt_checkpoint(read_checkpoint(tmp_path / "a.pth"), plain_unet(1))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_weights_become_the_networks(kind: torch.dtype, tmp_path: Path) -> None:
    weights = {n: t.to(kind) if t.is_floating_point() else t for n, t in plain_unet().state_dict().items()}
    torch.save(weights, tmp_path / "a.pth")
    state, report = adapt_checkpoint(read_checkpoint(tmp_path / "a.pth"), plain_unet(1))
    assert report.encoder_fraction == 1.0
    assert {t.dtype for t in state.values()} == {torch.float32, torch.int64}
    assert torch.equal(
        state["encoder.stages.0.0.convs.0.conv.weight"], weights["encoder.stages.0.0.convs.0.conv.weight"].float()
    )


def test_views_and_empty_tensors_are_read(tmp_path: Path) -> None:
    weights = plain_unet().state_dict()
    name = "encoder.stages.0.0.convs.0.conv.weight"
    views = {n: t.transpose(0, 1).contiguous().transpose(0, 1) if t.ndim == 5 else t for n, t in weights.items()}
    torch.save(views | {"empty": torch.zeros(0, 3), "expanded": torch.zeros(1).expand(3, 3)}, tmp_path / "a.pth")
    target = plain_unet(1)
    state, report = adapt_checkpoint(read_checkpoint(tmp_path / "a.pth"), target)
    target.load_state_dict(state)
    assert torch.equal(target.state_dict()[name], weights[name])
    assert report.encoder_fraction == 1.0


def test_endless_names_are_refused() -> None:
    """Matching names by their endings takes time that grows with the square of their length."""
    with pytest.raises(CheckpointError, match="names a tensor with 2,000,001 characters"):
        network_weights({"a." * 10**6 + "b": torch.zeros(1)})


@pytest.mark.parametrize(
    ("block", "match"),
    [
        ({"ssl": {"patch_size": "large"}}, r"its patch_size is 'large'.*Expected 2 or 3 whole numbers"),
        ({"ssl": {"patch_size": [10**9] * 3}}, "whole numbers from 1 to 100,000"),
        ({"ssl": {"patch_size": [16, 0, 16]}}, "whole numbers from 1"),
        ({"ssl": {"num_input_channels": -1}}, "num_input_channels is -1"),
        ({"nnssl_adaptation_plan": {"pretrain_num_input_channels": [[]]}}, "pretrain_num_input_channels"),
        (
            {"nnssl_adaptation_plan": {"pretrain_plan": {"configurations": {"a": {"patch_size": {}}}}}},
            "patch_size is dict",
        ),
    ],
)
def test_descriptions_that_make_no_sense(block: dict[str, Any], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        adapt_checkpoint({"network_weights": plain_unet().state_dict(), **block}, plain_unet(1))


def test_safetensors_headers_of_every_length_are_no_pickles(tmp_path: Path) -> None:
    """The first bytes of a file say how long its header is, and each of them is an operation to a reader of pickles."""
    data = struct.pack("<8f", *range(8)) + b"\0" * 24 + b"\n\n"  # lines of text, to such a reader
    for length in [*range(70, 70 + 256), *(0x100 * high + low for high in b"ci\x93(R" for low in b"ci\x93(R")]:
        header = json.dumps({"a": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).ljust(length)
        safetensors(tmp_path / "a.safetensors", header.encode(), data)
        assert set(read_checkpoint(tmp_path / "a.safetensors")) == {"a"}


@pytest.mark.parametrize("what", ["a pickle", "a zip archive", "a tar archive"])
def test_safetensors_that_are_something_else_as_well(what: str, tmp_path: Path) -> None:
    path, witness = tmp_path / "a.safetensors", tmp_path / "exploded"
    header = {"V" * 517: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}
    if what == "a pickle":  # see tests/integration/test_foreign_files.py
        data = b"\n0" + pickle.dumps(Bomb(witness), protocol=0)
        length = ord("X") + (517 << 8)
    elif what == "a zip archive":
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as written:
            written.writestr("a/data.pkl", pickle.dumps(Bomb(witness), protocol=2))
        data, length = archive.getvalue(), 1000
    else:
        data, length = b"", 1000
    header["V" * 517].update(shape=[len(data)], data_offsets=[0, len(data)])
    text = json.dumps(header).ljust(length)
    if what == "a tar archive":  # numbers of blanks are zero there; only the checksum has to be right
        text = text.replace("V" * 517, "V" + " " * 516)
        total = sum((struct.pack("<Q", length) + text.encode())[:512])
        text = f"{text[:140]}{total:06o}  {text[148:]}"
    safetensors(path, text.encode(), data)
    refuse(path, f"a safetensors file and {what} at once")
    assert not witness.exists()


def test_tokens_of_no_voxels() -> None:
    assert grid_of((16, 16, 16), (8, 0, 8)) is None
