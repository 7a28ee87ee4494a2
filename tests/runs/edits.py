"""Edits of a run folder, as a careless or ill-meaning hand makes them; every one is a function of the folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load, save

Edit = Callable[[Path], Any]
DIGITS = "9" * 5000


def newest(run: Path) -> Path:
    """The newest training checkpoint."""
    return max((run / "checkpoints").glob("task-*"))


def sign(checkpoint: Path) -> None:
    """Makes the manifest fit the files again, as whoever edits on purpose does."""
    names = sorted(path.name for path in checkpoint.iterdir() if path.name != "MANIFEST.json")
    contents = {name: (checkpoint / name).read_bytes() for name in names}
    files = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in contents.items()}
    manifest: dict[str, Any] = {"format": 1, "files": files}
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest))


def put(name: str, data: bytes, of: str | None = None) -> Edit:
    """Replaces a file of the newest checkpoint (or that called ``of``), and signs."""

    def edit(run: Path) -> None:
        checkpoint = newest(run) if of is None else run / "checkpoints" / of
        (checkpoint / name).write_bytes(data)
        sign(checkpoint)

    return edit


def state(**changes: Any) -> Edit:
    """Changes keys of the newest checkpoint's state, and signs."""

    def edit(run: Path) -> None:
        values = json.loads((newest(run) / "state.json").read_text())
        put("state.json", json.dumps({**values, **changes}).encode())(run)

    return edit


def state_text(old: bytes, new: bytes) -> Edit:
    """Replaces text of the newest checkpoint's state, and signs."""

    def edit(run: Path) -> None:
        data = (newest(run) / "state.json").read_bytes()
        assert old in data
        put("state.json", data.replace(old, new, 1))(run)

    return edit


def tensors(group: str, change: Callable[[dict[str, torch.Tensor]], Any], of: str | None = None) -> Edit:
    """Changes the tensors of a group of the newest checkpoint in place, and signs."""

    def edit(run: Path) -> None:
        checkpoint = newest(run) if of is None else run / "checkpoints" / of
        found = load((checkpoint / f"{group}.safetensors").read_bytes())
        change(found)
        put(f"{group}.safetensors", save(found), of)(run)

    return edit


def header(text: str) -> bytes:
    """A safetensors file with this header and 64 bytes of numbers."""
    return struct.pack("<Q", len(text)) + text.encode() + bytes(64)


def config(key: str, value: Any) -> Edit:
    """Sets a dotted key of config.yaml."""

    def edit(run: Path) -> None:
        values = yaml.safe_load((run / "config.yaml").read_text())
        *sections, last = key.split(".")
        inner = values
        for section in sections:
            inner = inner[section]
        assert last in inner
        inner[last] = value
        (run / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))

    return edit


def summary(**changes: Any) -> Edit:
    """Changes keys of summary.json."""

    def edit(run: Path) -> None:
        path = run / "summary.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def text(name: str, content: str | bytes) -> Edit:
    """Replaces a file of the folder."""

    def edit(run: Path) -> None:
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return edit


def without(name: str) -> Edit:
    """Removes a file or folder."""

    def edit(run: Path) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


def both(*edits: Edit) -> Edit:
    """One after the other."""

    def edit(run: Path) -> None:
        for each in edits:
            each(run)

    return edit


def _nan(found: dict[str, torch.Tensor]) -> None:
    next(iter(found.values())).view(-1)[0] = float("nan")


def _narrower(found: dict[str, torch.Tensor]) -> None:
    found.update({name: tensor[:-1].clone() for name, tensor in found.items()})


def _reshaped(found: dict[str, torch.Tensor]) -> None:
    name = next(iter(found))
    found[name] = found[name].flatten()[:1].clone()


def _fewer(found: dict[str, torch.Tensor]) -> None:
    del found[next(iter(found))]


def _from_the_future(run: Path) -> None:
    shutil.copytree(newest(run), run / "checkpoints" / "task-999-epoch-0000-step-000000")


def _file_for_checkpoint(run: Path) -> None:
    path = newest(run)
    shutil.rmtree(path)
    path.write_text("x")


def _empty_checkpoints(run: Path) -> None:
    for path in (run / "checkpoints").glob("task-*"):
        shutil.rmtree(path)
        path.mkdir()


def _file_for_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("x")


def _no_statistics(run: Path) -> None:
    for path in (run / "checkpoints").glob("statistics-*"):
        path.unlink()


def _manifest(content: str) -> Edit:
    return lambda run: (newest(run) / "MANIFEST.json").write_text(content)


_ALIASES = "preset: demo\noutput: x\nmodel:\n  kwargs:\n    a0: &a0 [x, x]\n" + "".join(
    f"    a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 16)
)
_LATER = {"task": 2, "epoch": 0, "step": 0, "loss_sum": 0.0}

OF_CONFIG: dict[str, Edit] = {
    "embed_dim that does not fit": config("model.kwargs.embed_dim", 32),
    "no heads": config("model.kwargs.num_heads", 0),
    "depth that does not fit": config("model.kwargs.depth", 3),
    "huge depth": config("model.kwargs.depth", 10**9),
    "lora rank that does not fit": config("model.lora.rank", 3),
    "float batch size": config("optim.batch_size", 2.5),
    "text batch size": config("optim.batch_size", "8"),
    "number as model name": config("model.name", 5),
    "model of a hub": config("model.name", "hf-hub:evil/evil"),
    "scenario of another kind": config("tasks.scenario", "dil"),
    "unknown scenario": config("tasks.scenario", "nonsense"),
    "unknown recipe": config("data.recipe", "nonsense"),
    "unknown precision": config("runtime.precision", "nonsense"),
    "unknown attention": config("runtime.attention", "nonsense"),
    "image size that does not fit": config("data.image_size", 24),
    "kwargs is a list": config("model.kwargs", [1]),
    "settings nobody has": config("method_settings", {"a": {"b": 1}}),
    "seed of many digits": text("config.yaml", f"seed: {DIGITS}\n"),
    "seed of many hexadecimal digits": text("config.yaml", f"seed: 0x{DIGITS}\n"),
    "python tag": text("config.yaml", "x: !!python/object/apply:os.system ['touch PWNED']\n"),
    "yaml nested deeply": text("config.yaml", "[" * 3000),
    "yaml nested at all": text("config.yaml", "seed: " + "[" * 100 + "]" * 100),
    "odd date": text("config.yaml", "seed: 2024-99-99\n"),
    "empty yaml": text("config.yaml", ""),
    "binary yaml": text("config.yaml", b"\x80\xff\x00"),
    "bomb of aliases": text("config.yaml", _ALIASES),
    "alias of itself": text("config.yaml", "preset: demo\nmodel:\n  kwargs: &k\n    a: *k\n"),
    "list as key": text("config.yaml", "? [1]\n: 2\n"),
    "no config": without("config.yaml"),
}
"""Of config.yaml."""

OF_CHECKPOINTS: dict[str, Edit] = {
    "empty state": put("state.json", b"{}"),
    "state is a list": put("state.json", b"[]"),
    "huge class index": state(class_order=[10**12]),
    "another class order": state(class_order=[0, 1, 2, 3]),
    "text for class order": state(class_order="abcd"),
    "too few names": state(class_names=["a"]),
    "negative sizes": state(task_sizes=[-5, 9]),
    "huge sizes": state(task_sizes=[10**11]),
    "other sizes": state(task_sizes=[1, 3]),
    "huge position": state(position={**_LATER, "task": 10**9}),
    "negative position": state(position={**_LATER, "task": -1}),
    "textual position": state(position={**_LATER, "task": "x"}),
    "another position": state(position={**_LATER, "task": 1}),
    "number for config": state(config=7),
    "other config": state(config={"seed": 1}),
    "config of other kinds": state(config={"optim": {"lr": []}, "model": 5}),
    "negative length of metrics": state(metrics_bytes=-5),
    "huge length of metrics": state(metrics_bytes=10**18),
    "domains of nobody": state(domain_names=["a", "a"]),
    "clock of text": state(seconds="x"),
    "infinite clock": state_text(b'"total_seconds": ', b'"total_seconds": 1e999, "x": '),
    "NaN in the state": state_text(b'"total_seconds":', b'"total_seconds": NaN, "x":'),
    "key twice": state_text(b"{", b'{"position": 1,'),
    "state nested deeply": put("state.json", b"[" * 200_000),
    "state nested at all": state(config={"model": {"kwargs": json.loads("[" * 500 + "]" * 500)}}),
    "state of many digits": state_text(b'"metrics_bytes": ', f'"metrics_bytes": {DIGITS}, "x": '.encode()),
    "huge shape": put(
        "heads.safetensors",
        header(json.dumps({"weight": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 64]}})),
    ),
    "shape of nothing": put(
        "heads.safetensors",
        header(json.dumps({"weight": {"dtype": "F32", "shape": [0, 1 << 62], "data_offsets": [0, 0]}})),
    ),
    "no tensors": put("heads.safetensors", header("{}")),
    "tensors nobody knows": put("heads.safetensors", save({"evil": torch.zeros(16)})),
    "no classifier": put("classifier.safetensors", save({})),
    "NaN heads": tensors("heads", _nan),
    "NaN classifier": tensors("classifier", _nan),
    "NaN backbone": tensors("backbone", _nan),
    "NaN frozen": tensors("backbone", _nan, of="frozen"),
    "narrower classifier": tensors("classifier", _narrower),
    "fewer heads": tensors("heads", _narrower),
    "weights of one number": tensors("backbone", _reshaped),
    "fewer weights": tensors("backbone", _fewer),
    "fewer frozen weights": tensors("backbone", _fewer, of="frozen"),
    "frozen weights of one number": tensors("backbone", _reshaped, of="frozen"),
    "confusion of nobody": put("confusion.safetensors", save({"cells": torch.full((1, 3), 10**12)})),
    "manifest names a path": both(
        lambda run: os.rename(newest(run) / "heads.safetensors", newest(run) / "x"), lambda run: sign(newest(run))
    ),
    "no frozen weights": without("checkpoints/frozen"),
    "frozen weights of nobody": put("backbone.safetensors", save({}), of="frozen"),
    "no statistics": _no_statistics,
    "file for a checkpoint": _file_for_checkpoint,
    "empty checkpoints": _empty_checkpoints,
    "checkpoint from the future": _from_the_future,
    "no manifest": lambda run: (newest(run) / "MANIFEST.json").unlink(),
    "manifest nested deeply": _manifest("[" * 200_000),
    "manifest of many digits": _manifest("1" * 100_000),
    "manifest of a list": _manifest("[1]"),
    "file for all checkpoints": _file_for_checkpoints,
    "no checkpoints": without("checkpoints"),
    "huge results": lambda run: _huge(run / "checkpoints" / "results.jsonl"),
    "lock is a folder": both(without(".lock"), lambda run: (run / ".lock").mkdir()),
}
"""Of a checkpoint, signed where that is possible."""

OF_RESULTS: dict[str, Edit] = {
    "folder for metrics": both(without("metrics.jsonl"), lambda run: (run / "metrics.jsonl").mkdir()),
    "pipe for metrics": lambda run: _pipe(run / "metrics.jsonl"),
    "metrics nested deeply": text("metrics.jsonl", "[" * 200_000 + "\n"),
    "loss of many digits": text("metrics.jsonl", f'{{"event":"epoch","task":0,"epoch":0,"loss":{DIGITS}}}\n'),
    "huge task": text(
        "metrics.jsonl", '{"event":"epoch","task":1e300,"epoch":0,"loss":1e308,"images_per_second":-1e308}\n' * 2
    ),
    "text for a loss": text(
        "metrics.jsonl", '{"event":"epoch","task":0,"epoch":0,"loss":"x","images_per_second":"y"}\n'
    ),
    "unhashable event": text("metrics.jsonl", '{"event":["epoch"],"task":0}\n[1]\n5\n'),
    "binary metrics": text("metrics.jsonl", bytes(range(256)) * 16),
    "summary nested deeply": text("summary.json", "[" * 200_000),
    "summary of many digits": text("summary.json", f'{{"seed": {DIGITS}}}'),
    "summary of other kinds": text(
        "summary.json",
        json.dumps(
            {
                "status": "complete",
                "task_sizes": [1e300],
                "class_order": ["a", {}],
                "class_names": 5,
                "phase_seconds": {"a": "b"},
                "total_seconds": -1e308,
                "accuracy_curve": [1e308, -1e308],
                "accuracy_matrix": [[1e308]],
                "backends": {"a": {}},
                "data_problems": {"quarantined": "x"},
                "peak_memory_bytes": 1e308,
                "seed": {},
            }
        ),
    ),
    "number for class names": summary(class_names=5),
    "class order of anything": summary(class_order=[{}, 1, "x", None]),
    "table for task sizes": summary(task_sizes={"a": 1}),
    "number for task sizes": summary(task_sizes=7),
    "long curve": summary(accuracy_curve=[50.0] * 20_000, accuracy_matrix=[[1.0]] * 2000),
    "flat matrix": summary(accuracy_matrix=[[1.0] * 9_000] * 3),
    "no accuracies": both(summary(accuracy_curve=[], top5_curve=[], accuracy_matrix=[]), without("metrics.jsonl")),
    "huge counts": text("confusion.csv", "1e308,1e308\n1e308,1e308\n"),
    "empty classes": text("confusion.csv", "0,0,0,0\n0,0,0,0\n0,0,0,5\n1,2,3,4\n"),
    "comment for a confusion": text("confusion.csv", "# x\n"),
    "NUL in the matrix": both(text("accuracy_matrix.csv", b"1,2\x00\n"), without("summary.json")),
    "large field": both(text("accuracy_matrix.csv", '"' + "x" * 200_000 + '"\n'), without("summary.json")),
    "problems of anything": text("problems.json", json.dumps([{"a": {"b": [[[1]]]}}, 5, None, ["x"]])),
    "problems nested": text("problems.json", "[" + '{"a":' * 900 + "1" + "}" * 900 + "]"),
}
"""Of what reports read."""

KNOWN = {**OF_CONFIG, **OF_CHECKPOINTS, **OF_RESULTS}
"""What was tried on earlier versions, of which many ended in a traceback, and their kin."""

VALUES = (
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    -0.5,
    float("nan"),
    "",
    "x",
    "9" * 5000,
    [],
    [[]],
    {},
    {"a": [1]},
    [1] * 300,
)


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _huge(path: Path) -> None:
    os.truncate(path, 2**42)


WHOLE: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda path: os.truncate(path, 0),
    "truncated": _truncated,
    "random bytes": lambda path: path.write_bytes(hashlib.sha512(path.name.encode()).digest() * 20),
    "folder": _folder,
    "loop of links": _loop,
    "endless": _endless,
    "pipe": _pipe,
    "huge": _huge,
    "nested": lambda path: path.write_bytes(b"[" * 100_000),
    "many digits": lambda path: path.write_text(DIGITS),
}
"""What happens to a file as a whole."""


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of all keys and places in a plain value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*path, key)
        yield from leaves(part, (*path, key))


def changed(value: Any, path: tuple, replacement: Any, delete: bool) -> None:
    """Replaces or deletes what lies at ``path`` in a plain value, in place."""
    for key in path[:-1]:
        value = value[key]
    if delete:
        del value[path[-1]]
    else:
        value[path[-1]] = replacement
