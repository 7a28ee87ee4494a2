"""Atomic replacement: the old or the new file, never a part, whoever else writes, and no temporary after an error."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slca_fast import files
from slca_fast.files import replace_bytes, replace_json, replace_text, replacing


class FailingOs:
    """The module ``os`` of files.py whose ``fail_at``-th open, write, fsync or rename fails."""

    def __init__(self, fail_at: int) -> None:
        self.left = fail_at

    def __getattr__(self, name: str):
        real = getattr(os, name)
        if name not in ("open", "write", "fsync", "rename"):
            return real

        def call(*args):
            self.left -= 1
            if self.left == 0:
                # A full disk takes what fits.
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([str(args[0])] if name == "open" else []))
            return real(*args)

        return call


@settings(max_examples=30, deadline=None)
@given(
    old=st.none() | st.binary(max_size=40), new=st.binary(max_size=40), name=st.sampled_from(["a", "b.json", "ä" * 127])
)
def test_a_failure_at_any_operation_leaves_the_old_or_the_new_file_and_nothing_else(tmp_path_factory, old, new, name):
    folder = tmp_path_factory.mktemp("files")
    path = folder / name
    for fail_at in range(1, 20):
        if old is not None:
            path.write_bytes(old)
        else:
            path.unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "os", FailingOs(fail_at))
            try:
                replace_bytes(path, new)
            except OSError as failure:
                assert failure.errno == errno.ENOSPC
                assert failure.filename in (str(path), str(folder)) and failure.filename2 is None
            else:
                assert path.read_bytes() == new and fail_at > 5
                break
        present = path.read_bytes() if path.exists() else None
        assert present in (old, new)
        assert [p.name for p in folder.iterdir()] == ([name] if present is not None else [])
    else:
        raise AssertionError("it never succeeded")


class Full(Exception):
    pass


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), Full(), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "image.png"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), replacing(path) as temporary:
        temporary.write_bytes(b"ne")
        raise error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_writer_may_put_another_file_where_it_should_write(tmp_path):
    (tmp_path / "source").write_bytes(b"linked")
    with replacing(tmp_path / "target") as temporary:
        temporary.unlink()
        os.link(tmp_path / "source", temporary)
    assert (tmp_path / "target").samefile(tmp_path / "source")


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as found, replacing(tmp_path / "target"):
        (tmp_path / "missing").read_bytes()
    assert str(found.value.filename) == str(tmp_path / "missing")


def test_many_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "shared"
    texts = [f"{i}" * 5000 for i in range(200)]
    seen = set()

    def write(text: str) -> None:
        with replacing(path) as temporary:
            assert temporary not in seen and temporary.stat().st_size == 0
            seen.add(temporary)
            temporary.write_text(text)
        assert path.read_text() in texts

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, texts))
    assert len(seen) == 200 and list(tmp_path.iterdir()) == [path]


def test_a_temporary_name_that_is_taken_is_an_error_and_stays(tmp_path, monkeypatch):
    class SameName:
        def __getattr__(self, name: str):
            return (lambda n: bytes(n)) if name == "urandom" else getattr(os, name)

    monkeypatch.setattr(files, "os", SameName())
    taken = tmp_path / f".a.{bytes(8).hex()}.new"
    taken.write_bytes(b"another's")
    with pytest.raises(FileExistsError):
        replace_text(tmp_path / "a", "mine")
    assert taken.read_bytes() == b"another's" and list(tmp_path.iterdir()) == [taken]


def test_mode_follows_the_umask_and_text_is_utf8(tmp_path: Path):
    before = os.umask(0o027)
    try:
        replace_text(tmp_path / "t", "ä")
        replace_json(tmp_path / "j", {"a": 1})
    finally:
        os.umask(before)
    assert (tmp_path / "t").read_bytes() == "ä".encode() and (tmp_path / "j").read_text() == '{\n  "a": 1\n}\n'
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o640 for p in tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named_with_the_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as found:
        replace_text(tmp_path / "no" / "file", "x")
    assert str(found.value.filename) == str(tmp_path / "no" / "file")
