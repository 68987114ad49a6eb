"""Hostile torch files. Each entry writes a file and says what the refusal must name."""

from __future__ import annotations

import argparse
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# make(path, canary) writes the file; a None phrase means that it may honestly open.
Maker = Callable[[Path, Path], None]
CASES: dict[str, tuple[Maker, str | None]] = {}


def hostile(phrase: str | None) -> Callable[[Maker], Maker]:
    """Register a maker under its name, with a phrase that the refusal must contain."""
    def add(maker: Maker) -> Maker:
        CASES[maker.__name__] = (maker, phrase)
        return maker
    return add


class Touch:
    """Unpickling this creates the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


class Execute(Touch):
    """The same through exec, which scanners sometimes miss."""

    def __reduce__(self) -> Any:
        return exec, (f"open({str(self.canary)!r}, 'w').close()",)


def weights() -> dict[str, torch.Tensor]:
    return {"fc1.weight": torch.ones(4, 3), "fc1.bias": torch.zeros(4),
            "fc2.weight": torch.ones(2, 4)}


def program_zip(path: Path, program: bytes, storages: dict[str, bytes] | None = None,
                compression: int = zipfile.ZIP_STORED) -> None:
    """A torch zip around a pickle program."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], numel: int, key: str = "0",
           offset: int = 0, kind: str = "FloatStorage") -> bytes:
    """Opcodes of one ``_rebuild_tensor_v2``."""
    pid = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(
        numel) + b"tQ"
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + number(offset) + numbers(shape)
            + numbers(stride) + b"\x89ccollections\nOrderedDict\n)RtR")


def state_dict(body: bytes, name: str = "weight") -> bytes:
    return b"\x80\x02}" + text(name) + body + b"s."


@hostile("posix.system")
def code_in_zip(path: Path, canary: Path) -> None:
    torch.save({**weights(), "x": Touch(canary)}, path)


@hostile("posix.system")
def code_in_legacy(path: Path, canary: Path) -> None:
    torch.save({**weights(), "x": Touch(canary)}, path, _use_new_zipfile_serialization=False)


@hostile("builtins.exec")
def code_by_exec(path: Path, canary: Path) -> None:
    torch.save({"x": Execute(canary)}, path, pickle_protocol=4)


@hostile("posix.system")
def code_before_the_weights(path: Path, canary: Path) -> None:
    torch.save([Touch(canary), weights()], path)


def _plain_pickle(protocol: int) -> None:
    def maker(path: Path, canary: Path) -> None:
        path.write_bytes(pickle.dumps(Touch(canary), protocol))
    maker.__name__ = f"code_in_plain_pickle_{protocol}"
    hostile("pickle" if protocol < 2 else "posix.system")(maker)


for _protocol in range(6):
    _plain_pickle(_protocol)


@hostile("posix.system")
def code_by_inst(path: Path, canary: Path) -> None:
    program_zip(path, b"\x80\x02(" + text(f"touch {canary}") + b"iposix\nsystem\n.")


@hostile("posix.system")
def code_by_obj(path: Path, canary: Path) -> None:
    program_zip(path, b"\x80\x02(cposix\nsystem\n" + text(f"touch {canary}") + b"o.")


@hostile("posix.system")
def code_by_newobj(path: Path, canary: Path) -> None:
    program_zip(path, b"\x80\x02cposix\nsystem\n" + text(f"touch {canary}") + b"\x85\x81.")


@hostile("opcode")
def code_by_extension(path: Path, canary: Path) -> None:
    program_zip(path, b"\x80\x02\x82\x01)R.")


@hostile("builtins.getattr")
def code_by_getattr(path: Path, canary: Path) -> None:
    program_zip(path, b"\x80\x02cbuiltins\ngetattr\n(cos\nsystem\n" + text("x") + b"tR.")


@hostile("torch.hub.load")
def code_by_torch_itself(path: Path, canary: Path) -> None:
    program_zip(path, b"\x80\x02ctorch.hub\nload\n" + text("evil/evil") + b"\x85R.")


@hostile("call of torch.UntypedStorage")
def allocation_of_a_storage(path: Path, canary: Path) -> None:
    program_zip(path, state_dict(b"ctorch\nUntypedStorage\n" + number(10**12) + b"\x85R"))


@hostile("builtins.bytearray")
def allocation_of_a_bytearray(path: Path, canary: Path) -> None:
    program_zip(path, state_dict(b"cbuiltins\nbytearray\n" + number(10**11) + b"\x85R"))


@hostile("encoding")
def growth_by_hex_encoding(path: Path, canary: Path) -> None:
    program_zip(path, state_dict(b"c_codecs\nencode\n" + text("x" * 99) + text("hex") + b"\x86R"))


@hostile("state is set anew")
def tensor_changed_by_build(path: Path, canary: Path) -> None:
    program_zip(path, state_dict(tensor((1,), (1,), 1) + numbers((10**9,)) + b"b"),
                {"0": bytes(4)})


@hostile("whole module")
def whole_module_zip(path: Path, canary: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), path)


@hostile("whole module")
def whole_module_legacy(path: Path, canary: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=False)


@hostile("argparse.Namespace")
def namespace_beside_the_weights(path: Path, canary: Path) -> None:
    torch.save({"state_dict": weights(), "args": argparse.Namespace(lr=1)}, path)


@hostile("stride bomb")
def stride_bomb(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, path)


@hostile("stride bomb")
def stride_bomb_legacy(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**12)}, path, _use_new_zipfile_serialization=False)


@hostile("stride bomb")
def window_bomb(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(10**5).unfold(0, 5 * 10**4, 1)}, path)


@hostile("beyond its storage")
def offset_beyond_the_storage(path: Path, canary: Path) -> None:
    program_zip(path, state_dict(tensor((4,), (1,), 4, offset=10**9)), {"0": bytes(16)})


@hostile("malformed stride")
def negative_stride(path: Path, canary: Path) -> None:
    program_zip(path, state_dict(tensor((4,), (-1,), 4, offset=3)), {"0": bytes(16)})


@hostile("storage of 4000000000000 bytes")
def storage_of_a_terabyte(path: Path, canary: Path) -> None:
    program_zip(path, state_dict(tensor((10**12,), (1,), 10**12)), {"0": bytes(16)})


@hostile("not in the file")
def storage_missing(path: Path, canary: Path) -> None:
    program_zip(path, state_dict(tensor((4,), (1,), 4)))


@hostile("impossible shape")
def too_many_axes(path: Path, canary: Path) -> None:
    program_zip(path, state_dict(tensor((1,) * 70, (1,) * 70, 1)), {"0": bytes(4)})


@hostile("overlap")
def overlapping_views(path: Path, canary: Path) -> None:
    base = torch.zeros(10**5 + 2000)
    torch.save({f"w{i}": base[i:i + 10**5] for i in range(2000)}, path)


@hostile("zip bomb")
def zip_bomb(path: Path, canary: Path) -> None:
    program_zip(path, state_dict(tensor((5 * 10**6,), (1,), 5 * 10**6)), {"0": bytes(2 * 10**7)},
                zipfile.ZIP_DEFLATED)


@hostile("one name")
def two_programs(path: Path, canary: Path) -> None:
    good = state_dict(tensor((1,), (1,), 1))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("archive/data.pkl", good)
        archive.writestr("archive/data.pkl", b"\x80\x02cposix\nsystem\n.")
        archive.writestr("archive/data/0", bytes(4))


@hostile("more than the file has")
def members_that_overlap(path: Path, canary: Path) -> None:
    """The directory lists the same stored bytes a thousand times under other names."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", state_dict(tensor((1,), (1,), 1)))
        archive.writestr("archive/data/0", bytes(10**5))
        first = archive.getinfo("archive/data/0")
        for index in range(1, 1000):
            twin = zipfile.ZipInfo(f"archive/data/{index}")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(twin, field, getattr(first, field))
            archive.filelist.append(twin)


@hostile("TorchScript")
def torchscript(path: Path, canary: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("net/data.pkl", "net/constants.pkl", "net/code/__torch__.py"):
            archive.writestr(name, b"\x80\x02}.")


@hostile("stable-baselines3")
def archive_of_policies(path: Path, canary: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy.pth", b"x")


@hostile("zip archive")
def climbing_archive(path: Path, canary: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil", b"x")


@hostile("contains itself")
def cycle(path: Path, canary: Path) -> None:
    program_zip(path, b"\x80\x02}q\x00" + text("a") + b"h\x00s.")


@hostile("too large or too deeply nested")
def billion_laughs(path: Path, canary: Path) -> None:
    body = b"]q\x00" + tensor((1,), (1,), 1) + b"a0"
    for level in range(40):
        body += b"]q" + bytes([level + 1]) + b"(h" + bytes([level, 104, level]) + b"e0"
    program_zip(path, b"\x80\x02" + body + b"}" + text("a") + b"h\x28s.", {"0": bytes(4)})


@hostile("nested more than")
def deep_nest(path: Path, canary: Path) -> None:
    program_zip(path, b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".")


@hostile("steps")
def endless_program(path: Path, canary: Path) -> None:
    program_zip(path, b"\x80\x02" + b"N0" * 5_000_000 + b".")


@hostile("empty state dict")
def huge_memo_index(path: Path, canary: Path) -> None:
    program_zip(path, b"\x80\x02}r\xff\xff\xff\x7f.")


@hostile("damaged or cut off")
def string_longer_than_the_file(path: Path, canary: Path) -> None:
    program_zip(path, b"\x80\x04\x8d" + struct.pack("<Q", 10**15) + b"abc.")


@hostile("damaged or cut off")
def list_as_a_key(path: Path, canary: Path) -> None:
    program_zip(path, b"\x80\x02}]Ns.")


@hostile("sparse")
def sparse_tensor(path: Path, canary: Path) -> None:
    torch.save({"w": torch.eye(3).to_sparse()}, path)


@hostile("quantised")
def quantised_tensor(path: Path, canary: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, path)


@hostile("meta device")
def meta_tensor(path: Path, canary: Path) -> None:
    torch.save({"w": torch.empty(3, device="meta")}, path)


def _truncated(legacy: bool, cut: float) -> None:
    def maker(path: Path, canary: Path) -> None:
        torch.save({"w": torch.zeros(5000)}, path, _use_new_zipfile_serialization=not legacy)
        data = path.read_bytes()
        path.write_bytes(data[:int(len(data) * cut)])
    maker.__name__ = f"truncated_{'legacy' if legacy else 'zip'}_at_{int(cut * 1000)}"
    hostile("")(maker)


for _cut in (0.001, 0.01, 0.5, 0.9, 0.999):
    _truncated(False, _cut)
    _truncated(True, _cut)
