"""GGUF files written by hand, so that they can be wrong."""

from __future__ import annotations

import struct
from pathlib import Path


class Raw:
    """A GGUF file whose metadata, tensor table and counts are given as they stand in it."""

    def __init__(self, *, magic=b"GGUF", version=3, num_tensors=None, num_kv=None):
        self.magic, self.version = magic, version
        self.num_tensors, self.num_kv = num_tensors, num_kv
        self.kv: list[bytes] = []
        self.tensors: list[bytes] = []
        self.data = b"\0" * 256

    @staticmethod
    def string(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text

    def add(self, key: bytes, kind: int, payload: bytes) -> Raw:
        self.kv.append(self.string(key) + struct.pack("<I", kind) + payload)
        return self

    def tensor(self, name=b"t", dims=(32,), kind=0, offset=0) -> Raw:
        entry = self.string(name) + struct.pack("<I", len(dims))
        entry += struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)
        self.tensors.append(entry)
        return self

    def write(self, path: Path) -> Path:
        tensors = len(self.tensors) if self.num_tensors is None else self.num_tensors
        kv = len(self.kv) if self.num_kv is None else self.num_kv
        header = self.magic + struct.pack("<IQQ", self.version, tensors, kv)
        header += b"".join(self.kv + self.tensors)
        path.write_bytes(header + b"\0" * (-len(header) % 32) + self.data)
        return path
