"""One safetensors file with a JSON header and a SHA-256 over both: what methods keep of a finished task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from slca_fast.bounded import parse_json
from slca_fast.files import replace_bytes


def write_tensors(path: Path, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes ``tensors`` (CPU, contiguous) and ``header`` under the name ``kind``; atomic, mode by umask."""
    header_text = json.dumps(header, sort_keys=True)
    metadata = {kind: header_text, "sha256": _checksum(tensors, header_text)}
    replace_bytes(path, safetensors.torch.save(dict(tensors), metadata))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(header, tensors) that ``write_tensors`` wrote; raises ValueError naming the path for any other content."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (safetensors.SafetensorError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {str(error)[:200]}") from error
    header_text = metadata.get(kind, "")
    if metadata.get("sha256") != _checksum(tensors, header_text):
        raise ValueError(f"{path} is damaged or holds no {kind.replace('_', ' ')}: its checksum does not match")
    return parse_json(header_text, path), tensors


def _checksum(tensors: Mapping[str, Tensor], header_text: str) -> str:
    digest = hashlib.sha256(header_text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
