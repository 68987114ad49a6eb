"""More ways to code in a pickle: every opcode that can call, memo, nesting, compression, tails."""

from __future__ import annotations

import bz2
import gzip
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from attacks.hostile_pickles import CASES, Touch, hostile, program_zip, text, weights

SYSTEM = b"cposix\nsystem\n"
# name -> (what the refusal names, program after the protocol byte, given the shell command)
ROUTES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "reduce": ("posix.system", lambda c: SYSTEM + c + b"\x85R."),
    "tuple_by_mark": ("posix.system", lambda c: SYSTEM + b"(" + c + b"tR."),
    "stack_global": ("posix.system", lambda c: text("posix") + text("system") + b"\x93" + c
                     + b"\x85R."),
    "newobj_ex": ("posix.system", lambda c: SYSTEM + c + b"\x85}\x92."),
    "memo": ("posix.system", lambda c: SYSTEM + b"q\x070h\x07" + c + b"\x85R."),
    "long_memo": ("posix.system", lambda c: SYSTEM + b"r\x07\x00\x00\x000j\x07\x00\x00\x00" + c
                  + b"\x85R."),
    "build": ("posix.system", lambda c: SYSTEM + b"}" + text("x") + c + b"sb."),
    "popped_result": ("posix.system", lambda c: SYSTEM + c + b"\x85R0}."),
    "persistent_id": ("posix.system", lambda c: b"(" + text("storage") + SYSTEM + c + text("cpu")
                      + b"K\x01tQ."),
    "dotted_global": ("os.path", lambda c: b"cos.path\nos.system\n" + c + b"\x85R."),
    "getattr_chain": ("builtins.getattr", lambda c: b"cbuiltins\ngetattr\n(c__main__\n__dict__\n"
                      + text("x") + b"tR" + c + b"\x85R."),
    "eval": ("builtins.eval", lambda c: b"cbuiltins\neval\n" + c + b"\x85R."),
    "old_builtins": ("eval", lambda c: b"c__builtin__\neval\n" + c + b"\x85R."),
    "import": ("__import__", lambda c: b"cbuiltins\n__import__\n" + c + b"\x85R."),
    "nested_loads": ("pickle.loads", lambda c: b"cpickle\nloads\n" + c + b"\x85R."),
    "nested_torch_load": ("torch.serialization.load", lambda c: b"ctorch.serialization\nload\n" + c
                          + b"\x85R."),
    "partial": ("functools.partial", lambda c: b"cfunctools\npartial\n" + SYSTEM + c + b"\x86R)R."),
    "map": ("builtins.map", lambda c: b"cbuiltins\nmap\n" + SYSTEM + b"]" + c + b"a\x86R."),
    "attrgetter": ("operator.attrgetter", lambda c: b"coperator\nattrgetter\n" + c + b"\x85R."),
    "code_object": ("types.CodeType", lambda c: b"ctypes\nCodeType\n" + c + b"\x85R."),
    "subprocess": ("subprocess.Popen", lambda c: b"csubprocess\nPopen\n" + c + b"\x85R."),
    "unknown_module": ("evil_module.run", lambda c: b"cevil_module\nrun\n" + c + b"\x85R."),
    "name_with_newline": ("", lambda c: text("po\nsix") + text("sys\x1btem") + b"\x93" + c
                          + b"\x85R."),
}


def _route(name: str, phrase: str, program: Callable[[bytes], bytes]) -> None:
    def maker(path: Path, canary: Path) -> None:
        program_zip(path, b"\x80\x04" + program(text(f"touch {canary}")))
    maker.__name__ = f"route_{name}"
    hostile(phrase)(maker)


for _name, (_phrase, _program) in ROUTES.items():
    _route(_name, _phrase, _program)


def _attack(canary: Path) -> bytes:
    return b"\x80\x02" + SYSTEM + text(f"touch {canary}") + b"\x85R."


def _squeezed(name: str, compression: int) -> None:
    def maker(path: Path, canary: Path) -> None:
        program_zip(path, _attack(canary), compression=compression)
    maker.__name__ = f"code_in_{name}_zip"
    hostile("")(maker)


for _word, _how in (("deflated", zipfile.ZIP_DEFLATED), ("bz2", zipfile.ZIP_BZIP2),
                    ("lzma", zipfile.ZIP_LZMA)):
    _squeezed(_word, _how)


@hostile("gzip")
def code_in_gzip(path: Path, canary: Path) -> None:
    path.write_bytes(gzip.compress(_attack(canary)))


@hostile("")
def code_in_bz2(path: Path, canary: Path) -> None:
    path.write_bytes(bz2.compress(_attack(canary)))


@hostile("")
def code_in_a_zip_in_a_zip(path: Path, canary: Path) -> None:
    inner = io.BytesIO()
    torch.save({**weights(), "x": Touch(canary)}, inner)
    program_zip(path, inner.getvalue())


@hostile(None)
def code_after_the_weights(path: Path, canary: Path) -> None:
    """A second pickle behind a good legacy file: nobody reads that far."""
    torch.save(weights(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + _attack(canary))


@hostile("")
def code_before_a_zip(path: Path, canary: Path) -> None:
    """A file that is both: a pickle by its first bytes, a torch zip by its last."""
    torch.save(weights(), path)
    path.write_bytes(_attack(canary) + path.read_bytes())


@hostile("")
def code_before_a_safetensors_header(path: Path, canary: Path) -> None:
    from safetensors.torch import save

    path.write_bytes(_attack(canary) + save(weights()))


@hostile("posix.system")
def code_in_the_key_of_a_dict(path: Path, canary: Path) -> None:
    program_zip(path, b"\x80\x02}" + SYSTEM + text(f"touch {canary}") + b"\x85RNs.")


@hostile("numpy")
def array_of_objects(path: Path, canary: Path) -> None:
    import numpy as np

    path.write_bytes(pickle.dumps({"w": np.array([Touch(canary)], dtype=object)}, 2))


@hostile(None)
def scalars_and_empties(path: Path, canary: Path) -> None:
    torch.save({"scale": torch.tensor(2.0), "none": torch.zeros(0, 3), "w": torch.ones(2)}, path)


@hostile(None)
def infinities(path: Path, canary: Path) -> None:
    torch.save({"w": torch.tensor([float("inf"), -float("inf"), float("nan")])}, path)


__all__ = ["CASES"]
