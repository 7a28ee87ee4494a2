"""No input makes a traceback, a hang or a memory blow-up: configs, remembered indices, checkpoints, images.

Every search runs in a process of its own, under a limit of address space and of time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import pytest
import yaml
from crash import _context
from helpers import TINY_ARGS, tiny_config, write_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slca_fast.cli import main
from slca_fast.cli.config_args import known_keys
from slca_fast.data.headers import HeaderStore
from slca_fast.experiment import run
from slca_fast.methods.gaussians import ClassGaussians
from slca_fast.runs.folder import positions
from slca_fast.runs.snapshot import MANIFEST, STATE, BadSnapshot, _digest_of, read_snapshot
from slca_fast.runs.state import RunState

SEARCH = settings(
    max_examples=int(os.environ.get("SLCA_FAST_TEST_EXAMPLES", "60")),
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
MORE_BYTES = 3 << 30
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("1" * 400), st.just(10**400)
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner)),
    max_leaves=8,
)


def within_limits(search, *args) -> None:
    """Runs ``search(*args)`` in a process with 3 GB of address space beyond its start and two minutes."""
    log = tempfile.mkstemp(suffix=".log")[1]
    process = _context().Process(target=_limited, args=(search, args, log))
    process.start()
    process.join(240)
    hangs = process.is_alive()
    if hangs:
        process.kill()
    assert not hangs and process.exitcode == 0, Path(log).read_text()[-4000:]
    os.unlink(log)


def _limited(search, args, log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, used + MORE_BYTES))
    try:
        search(*args)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def outcome(*args: str) -> int:
    """Exit code of a command whose error, if any, is one line of ours."""
    error = io.StringIO()
    # Pillow warns of odd metadata on the way; that is no traceback.
    warnings.simplefilter("ignore")
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        code = main(list(args))
    text = error.getvalue()
    assert code in (0, 2, 3), (code, text)
    if code:
        assert text.startswith("slca-fast: error: ") and "Traceback" not in text, text
        assert code == 3 or text.count("\n") == 1, text
    return code


def search_configs(folder: Path) -> None:
    file = folder / "config.yaml"
    keys = st.sampled_from([*known_keys(), "preset", "optim", "model.kwargs.depth", "x"])

    @SEARCH
    @given(st.dictionaries(keys, values, max_size=3))
    def by_key(flat: dict) -> None:
        nested: dict = {}
        for key, value in flat.items():
            place, parts = nested, key.split(".")
            for part in parts[:-1]:
                if not isinstance(place.get(part), dict):
                    place[part] = {}
                place = place[part]
            place[parts[-1]] = value
        file.write_text(yaml.safe_dump(nested))
        outcome("train", str(file), "--print-config")

    @SEARCH
    @given(st.binary(max_size=200))
    def by_bytes(content: bytes) -> None:
        file.write_bytes(content)
        outcome("train", str(file), "--print-config")

    @SEARCH
    @given(st.sampled_from(known_keys()), st.text(max_size=12).filter(lambda text: "\0" not in text))
    def by_option(key: str, value: str) -> None:
        outcome("train", "demo", f"--{key}={value}", "--print-config")

    by_key()
    by_bytes()
    by_option()
    # A billion laughs: small text, exponential value.
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 30)]
    file.write_text("model:\n  kwargs:\n" + "".join(f"    {line}\n" for line in lines))
    outcome("train", str(file), "--print-config")
    file.write_text("[" * 5000)
    outcome("train", str(file), "--print-config")


def search_indices(folder: Path) -> None:
    os.environ["SLCA_FAST_CACHE"] = str(folder / "cache")
    images = write_images(folder / "images", num_classes=2, per_class=2)
    check = ("check-data", "--data.root", str(images))
    assert outcome(*check) == 0
    remembered = HeaderStore(images)._file
    good = remembered.read_bytes()
    rows = json.loads(good)["files"]

    @SEARCH
    @given(st.one_of(st.binary(max_size=80), values, st.tuples(st.sampled_from(sorted(rows)), values)), st.randoms())
    def damaged(change, rng: random.Random) -> None:
        if isinstance(change, tuple):
            content = {"version": json.loads(good)["version"], "files": {**rows, change[0]: change[1]}}
            remembered.write_text(json.dumps(content))
        elif isinstance(change, bytes):
            position = rng.randrange(len(good))
            remembered.write_bytes(good[:position] + change + good[position + rng.randrange(9) :])
        else:
            remembered.write_text(json.dumps({"version": json.loads(good)["version"], "files": change}))
        outcome(*check)

    damaged()


def search_checkpoints(output: Path) -> None:
    checkpoints = output / "checkpoints"
    newest = positions(checkpoints)[-1]
    state = json.loads((newest / STATE).read_bytes())
    manifest = json.loads((newest / MANIFEST).read_bytes())
    statistics = next(checkpoints.glob("statistics-*"))
    measured = statistics.read_bytes()

    def read() -> None:
        try:
            _, found = read_snapshot(newest)
            RunState.from_dict(found)
        except BadSnapshot as problem:
            assert str(problem)

    def put(content: bytes, changes: dict) -> None:
        """A manifest that vouches for what it should not."""
        (newest / STATE).write_bytes(content)
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        made = {**manifest, "files": {**manifest["files"], STATE: entry}, **changes}
        made.pop("sha256", None)
        made["sha256"] = _digest_of(made)
        (newest / MANIFEST).write_text(json.dumps(made))
        read()

    @SEARCH
    @given(st.one_of(values, st.tuples(st.sampled_from(sorted(state)), values)))
    def states(change) -> None:
        put(json.dumps({**state, change[0]: change[1]} if isinstance(change, tuple) else change).encode(), {})

    @SEARCH
    @given(values, st.sampled_from(["files", "format"]))
    def manifests(value, key: str) -> None:
        put(json.dumps(state).encode(), {key: value})

    @SEARCH
    @given(st.binary(max_size=300))
    def manifest_bytes(content: bytes) -> None:
        (newest / MANIFEST).write_bytes(content)
        read()

    @SEARCH
    @given(st.binary(max_size=20), st.randoms())
    def statistics_bytes(content: bytes, rng: random.Random) -> None:
        start = rng.randrange(min(len(measured), 900))
        statistics.write_bytes(measured[:start] + content + measured[start + rng.randrange(30) :])
        with contextlib.suppress(ValueError):
            ClassGaussians.load(statistics)

    states()
    manifests()
    manifest_bytes()
    statistics_bytes()
    # A device that never ends, a file outside, a length that is no length.
    for name in ("/dev/zero", "../../config.yaml", "state.json"):
        put(json.dumps(state).encode(), {"files": {name: {"sha256": "0", "bytes": -1}}})


def search_images(folder: Path) -> None:
    os.environ["SLCA_FAST_CACHE"] = str(folder / "cache")
    images = write_images(folder / "images", num_classes=2, per_class=2)
    target = images / "train" / "class0" / "000.png"
    pictures = [target.read_bytes()]
    from PIL import Image

    for kind in ("JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        buffer = io.BytesIO()
        Image.open(target).save(buffer, kind)
        pictures.append(buffer.getvalue())
    args = ("train", "demo", *TINY_ARGS, "--tasks.sizes", "[1,1]", "--optim.epochs", "1", "--data.root", str(images))

    @SEARCH
    @given(st.sampled_from(pictures), st.binary(max_size=12), st.randoms(), st.booleans())
    def damaged(picture: bytes, content: bytes, rng: random.Random, whole: bool) -> None:
        start = rng.randrange(len(picture))
        target.write_bytes(picture[:start] + content + picture[start + rng.randrange(12) :])
        if outcome("check-data", "--data.root", str(images)) == 0 and whole:
            shutil.rmtree(folder / "run", ignore_errors=True)
            outcome(*args, "--output", str(folder / "run"))

    damaged()


@pytest.mark.slow
@pytest.mark.parametrize("search", [search_configs, search_indices, search_images])
def test_no_input_makes_a_traceback_a_hang_or_a_memory_blow_up(tmp_path, search) -> None:
    within_limits(search, tmp_path)


@pytest.mark.slow
def test_no_checkpoint_file_makes_a_traceback_a_hang_or_a_memory_blow_up(tmp_path) -> None:
    images = write_images(tmp_path / "images")
    run(tiny_config(images, tmp_path / "run", "--tasks.sizes", "[2,2]"), preset="demo")
    within_limits(search_checkpoints, tmp_path / "run")
