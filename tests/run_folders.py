"""Run folders as training leaves them, and checks on the pages made from them."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console

from slca_fast.metrics import TaskResult, summary_metrics

HOSTILE = "<script>alert('x')</script>\"&]]>--> $\\frac{ </svg> [red]"


def make_run(
    folder: Path,
    *,
    preset="demo",
    method="slcapp",
    seed=1993,
    sizes=(2, 2, 2),
    accuracy=None,
    epochs=4,
    class_names=None,
    without=(),
    config=None,
    **summary_changes,
) -> Path:
    """A run folder as training leaves it; ``without`` names files not to write."""
    folder.mkdir(parents=True)
    num_tasks, num_classes = len(sizes), sum(sizes)
    rng = np.random.default_rng(seed)
    curve = list(accuracy or np.round(np.linspace(96.5, 80.25, num_tasks), 2))
    matrix = [
        [round(float(min(99.9, curve[t] + 1.5 * k - t)), 2) if k <= t else None for k in range(num_tasks)]
        for t in range(num_tasks)
    ]
    results = [
        TaskResult(float(a), min(100.0, a + 4), tuple(row[: t + 1])) for t, (a, row) in enumerate(zip(curve, matrix))
    ]
    names = class_names or [f"class {c}" for c in range(num_classes)]
    summary = {
        "preset": preset,
        "method": method,
        "seed": seed,
        **summary_metrics(results),
        "task_sizes": list(sizes),
        "class_order": rng.permutation(num_classes).tolist(),
        "class_names": names,
        "phase_seconds": {
            "stage1": 61.2,
            "statistics": 3.4,
            "alignment": 5.5,
            "evaluation": 8.0,
            "data": 6.1,
            "compile": 0.0,
        },
        "total_seconds": 90.0,
        "train_images_per_second": 1234.5,
        "peak_memory_bytes": 3 * 2**29,
        "backends": {"symmetric_cross_entropy": "native", "data": "pillow"},
        "backend_reasons": {"symmetric_cross_entropy": "fastest on this CPU", "data": "no GPU decoder here"},
        "versions": {"python": "3.11.2", "torch": "2.14.1", "slca_fast": "0.1.0"},
        "device": "cpu",
        "cpu_threads": 2,
        "precision": "fp32",
        "weights_sha256": "ab" * 32,
        "data_problems": {"quarantined": 1, "notes": {}},
        "status": "complete",
    } | summary_changes
    events = []
    for task in range(num_tasks):
        for epoch in range(epochs):
            loss = 2.2 * math.exp(-epoch / 2) + 0.1 + 0.05 * rng.random()
            events.append(
                {
                    "event": "epoch",
                    "task": task,
                    "epoch": epoch,
                    "num_epochs": epochs,
                    "loss": loss,
                    "lr": {"head": 0.01},
                    "images_per_second": 1200 + 60 * rng.random(),
                    "seconds": 1.1,
                }
            )
        for epoch in range(5 if task else 0):
            events.append({"event": "align", "task": task, "epoch": epoch, "loss": 1.5 * math.exp(-epoch) + 0.2})
        events.append({"event": "something new", "x": 1})
        events.append(
            {"event": "task", "task": task, "accuracy": curve[task], "top5": 99.0, "per_task": matrix[task][: task + 1]}
        )
    confusion_CC = rng.integers(0, 3, (num_classes, num_classes)) + np.diag(rng.integers(30, 50, num_classes))
    tasks = {"scenario": "cil", "initial": sizes[0], "increment": sizes[-1]}
    config = {
        "seed": seed,
        "output": str(folder),
        "tasks": tasks,
        "optim": {"lr": 0.01},
        "method": method,
        **(config or {}),
    }
    files = {
        "summary.json": json.dumps(summary),
        "config.yaml": yaml.safe_dump(config),
        "metrics.jsonl": "".join(json.dumps(event) + "\n" for event in events),
        "accuracy_matrix.csv": "\n".join(",".join("" if a is None else str(a) for a in row) for row in matrix),
        "confusion.csv": "\n".join(",".join(map(str, row)) for row in confusion_CC.tolist()),
        "problems.json": json.dumps(["train/3/a.png: truncated after 812 bytes"]),
    }
    for name in files.keys() - set(without):
        (folder / name).write_text(files[name])
    return folder


class Page(HTMLParser):
    """Collects tags, what they would load, and the visible text."""

    VOID = ("meta", "link", "br", "img", "hr", "input")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.loads, self.tags, self.text, self.open, self.ids = [], [], "", [], []
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "srcset", "xlink:href", "href") and not v.startswith("#")]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text += " " + data if self.open[-1:] != ["style"] else ""


def assert_sound(path: Path) -> Page:
    page = Page(path)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(target.startswith("data:image/png") for target in page.loads)
    assert "http:" not in page.source and "https:" not in page.source
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert "url(" not in re.sub(r"url\(#\w+\)", "", page.source) and "@import" not in page.source
    assert "nan" not in page.text.lower().split() and "None" not in page.text.split()
    return page


def printed(table, width: int = 200) -> str:
    """What a terminal of this width shows."""
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()
