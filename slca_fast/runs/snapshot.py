"""Snapshots: immutable folders of safetensors files and a state, complete or absent, never half.

A snapshot is written under a temporary name, every file flushed, ``MANIFEST.json`` (sha256 of each file) last, then
renamed into place. Reading checks every byte against the manifest, so a flipped bit or a torn write is found.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from slca_fast import files
from slca_fast.bounded import Unreadable, parse_json, read_bounded

MANIFEST = "MANIFEST.json"
STATE = "state.json"
FORMAT = 1
_MOST_MANIFEST_BYTES, _MOST_STATE_BYTES = 2**20, 2**29
# Versions before 0.2 wrote states of hundreds of MB.
_FILE_NAME = re.compile(r"[a-z_]+\.safetensors|state\.json")


class BadSnapshot(Exception):
    """A snapshot that cannot be trusted; says why."""


def write_snapshot(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Writes ``folder`` with one ``<key>.safetensors`` per entry of ``tensors`` and ``state`` as JSON.

    Atomic: after a crash at any moment ``folder`` is complete or does not exist; a valid snapshot that is there
    already stays, a damaged one is replaced. Raises OSError when the disk does, leaving nothing behind.
    """
    if folder.exists():
        try:
            read_snapshot(folder)
            return folder
        except BadSnapshot:
            shutil.rmtree(folder, ignore_errors=True)
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        payload = {f"{name}.safetensors": save_tensors(_portable(group)) for name, group in tensors.items()}
        payload[STATE] = json.dumps(state, indent=1, allow_nan=False).encode()
        digests = {}
        for name, data in payload.items():
            files.write_durably(temporary / name, data)
            digests[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest = {"format": FORMAT, "files": digests}
        manifest["sha256"] = _digest_of(manifest)
        files.write_durably(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
        files.sync_folder(temporary)
        files.rename_durably(temporary, folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def read_snapshot(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors and the state of a snapshot, every byte verified; raises BadSnapshot with the reason."""
    try:
        manifest = parse_json(read_bounded(folder / MANIFEST, _MOST_MANIFEST_BYTES), folder / MANIFEST)
        claimed = manifest.pop("sha256")
        if _digest_of(manifest) != claimed:
            raise BadSnapshot(f"{folder / MANIFEST} does not match its own digest")
        if manifest["format"] != FORMAT:
            raise BadSnapshot(f"{folder} has format {str(manifest['format'])[:40]}, this version reads {FORMAT}")
        payload = {}
        for name, entry in manifest["files"].items():
            if not _FILE_NAME.fullmatch(name):
                raise BadSnapshot(f"{folder / MANIFEST} names {name[:40]!r}, which no snapshot holds")
            size = (folder / name).stat().st_size
            if size != entry["bytes"]:
                raise BadSnapshot(f"{folder / name} has another size than its manifest says")
            data = read_bounded(folder / name, _MOST_STATE_BYTES if name == STATE else size)
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise BadSnapshot(f"{folder / name} does not match its sha256")
            payload[name] = data
        state = parse_json(payload.pop(STATE), folder / STATE)
        tensors = {name.removesuffix(".safetensors"): load_tensors(data) for name, data in payload.items()}
    except OSError as error:
        raise BadSnapshot(f"{folder} cannot be read ({error.strerror}: {error.filename})") from error
    except Unreadable as error:
        raise BadSnapshot(str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadSnapshot(f"{folder / MANIFEST} is damaged ({type(error).__name__}: {reason})") from error
    if not isinstance(state, dict):
        raise BadSnapshot(f"{folder / STATE} does not hold a table")
    return tensors, state


def newest_valid(folders: list[Path], report: Callable[[str], None]) -> Iterator[tuple[Path, dict, dict]]:
    """``(folder, tensors, state)`` of the valid ones of ``folders``, newest (last) first; bad ones are reported."""
    for folder in reversed(folders):
        try:
            tensors, state = read_snapshot(folder)
        except BadSnapshot as problem:
            report(f"checkpoint ignored: {problem}")
            continue
        yield folder, tensors, state


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """One digest over names, dtypes, shapes and bytes of ``tensors``, by sorted name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _portable(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in group.items()}


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
