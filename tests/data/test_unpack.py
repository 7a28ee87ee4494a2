"""Archives that are hostile, damaged or none at all are refused, and nothing lands outside."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_folders import picture, tree

from slca_fast.cli import main
from slca_fast.data.prepare import prepare
from slca_fast.data.prepare.unpack import unpacked
from slca_fast.errors import DataError


def add_to_tar(archive, name, content=b"x", **fields):
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        for key, value in fields.items():
            setattr(member, key, value)
        tar.addfile(member, io.BytesIO(content))
    return archive


@pytest.mark.parametrize(
    "name, fields",
    [
        ("../evil.jpg", {}),
        ("a/../../evil.jpg", {}),
        ("/tmp/evil.jpg", {}),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("hard", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}),
        ("device", {"type": tarfile.CHRTYPE}),
    ],
)
def test_hostile_tars_are_refused(tmp_path, name, fields):
    archive = add_to_tar(tmp_path / "x.tar", name, **fields)
    with pytest.raises(DataError, match=r"leads outside|no regular file"):
        unpacked(archive, tmp_path / "out")
    assert not (tmp_path / "out/.unpacked/evil.jpg").exists() and not (tmp_path / "out/evil.jpg").exists()


def test_hostile_and_damaged_zips_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("..\\..\\evil.jpg", b"x")
    with pytest.raises(DataError, match="leads outside"):
        unpacked(tmp_path / "x.zip", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big", bytes(1 << 24))
    with pytest.raises(DataError, match="expands to more than"):
        unpacked(tmp_path / "bomb.zip", tmp_path / "out")
    content = (tmp_path / "bomb.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="damaged"):
        unpacked(tmp_path / "cut.zip", tmp_path / "out")
    (tmp_path / "file.rar").write_bytes(b"x")
    with pytest.raises(DataError, match="neither a folder nor an archive"):
        unpacked(tmp_path / "file.rar", tmp_path / "out")


FILES = {f"data/{c}/{i}.bin": np.random.default_rng(i).bytes(3000) for c in "ab" for i in range(3)}


def tar_bytes(files=FILES):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def zip_bytes(method):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in FILES.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return stream.getvalue()


ARCHIVES = {
    ".tar.gz": gzip.compress(tar_bytes(), mtime=0),
    ".tar.xz": lzma.compress(tar_bytes()),
    ".tar.bz2": bz2.compress(tar_bytes()),
    "stored.zip": zip_bytes(zipfile.ZIP_STORED),
    "deflated.zip": zip_bytes(zipfile.ZIP_DEFLATED),
    "bzip2.zip": zip_bytes(zipfile.ZIP_BZIP2),
    "lzma.zip": zip_bytes(zipfile.ZIP_LZMA),
}


def unpacked_or_refused(content, name):
    """{path: content} of what is unpacked, or None when the archive is refused in one line that names it."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / f"x{name}"
        archive.write_bytes(content)
        try:
            out = unpacked(archive, Path(folder) / "out")
        except DataError as error:
            assert str(archive) in str(error) and "\n" not in str(error)
            return None
        return {path: (out / path).read_bytes() for path in tree(out)}


@pytest.mark.parametrize("name", ARCHIVES)
def test_whole_archives_are_unpacked(name):
    assert unpacked_or_refused(ARCHIVES[name], name) == FILES


@given(st.sampled_from(sorted(ARCHIVES)), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_is_found_or_does_not_matter(name, where, change):
    content = bytearray(ARCHIVES[name])
    content[int(where * len(content))] ^= change
    assert unpacked_or_refused(bytes(content), name) in (None, FILES)


@given(st.sampled_from(sorted(ARCHIVES)), st.floats(0, 1, exclude_max=True))
@settings(max_examples=100, deadline=None)
def test_cut_archives_are_refused(name, where):
    assert unpacked_or_refused(ARCHIVES[name][: int(where * len(ARCHIVES[name]))], name) is None


@pytest.mark.parametrize("damage", ["flipped", "zeros", "cut before the end mark", "two in one"])
def test_a_damaged_member_is_not_the_end_of_a_tar(damage):
    content = tar_bytes()
    header = content.index(b"data/b/0.bin")
    broken = {
        "flipped": content[: header + 3] + b"?" + content[header + 4 :],
        "zeros": content[:header] + bytes(512) + content[header + 512 :],
        "cut before the end mark": content[:header],
        "two in one": tar_bytes({"a": b"x"}) + content,
    }[damage]
    assert unpacked_or_refused(broken, ".tar") is None
    assert unpacked_or_refused(gzip.compress(broken), ".tar.gz") is None


@pytest.mark.parametrize("entry", range(5))
def test_a_zip_that_loses_members_is_refused(entry):
    content = bytearray(ARCHIVES["stored.zip"])
    start = content.index(b"PK\x01\x02")
    for _ in range(entry):
        start = content.index(b"PK\x01\x02", start + 1)
    content[start + 33] ^= 8  # the length of its comment, which then covers the members after it
    assert unpacked_or_refused(bytes(content), ".zip") is None


def test_zip_names_that_are_no_utf8_name_the_archive():
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as archive:
        archive.writestr("caf\u00e9.png", b"x")
    content = stream.getvalue().replace("caf\u00e9".encode(), b"caf\xff\xfe")
    assert unpacked_or_refused(content, ".zip") is None


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("x" * 300,), ("d/" * 2100 + "x",)])
def test_members_in_each_others_way_are_refused(names):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    assert unpacked_or_refused(stream.getvalue(), ".tar") is None


def test_a_name_of_gigabytes_is_not_read():
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 4 << 30
    assert unpacked_or_refused(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 14), ".tar") is None


def image_tar(folder, archive, num=6):
    for name in "ab":
        for i in range(num):
            (folder / name).mkdir(parents=True, exist_ok=True)
            picture(30, 30, i).save(folder / name / f"{i}.jpg")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname="data")
    return archive


def test_a_flipped_byte_leaves_nothing_behind(tmp_path, capsys):
    archive = image_tar(tmp_path / "images", tmp_path / "x.tar.gz")
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    assert main(["prepare", "folder", "--source", str(archive), "--root", str(tmp_path / "out")]) == 3
    assert f"{archive} is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_another_archive_left_is_not_taken(tmp_path):
    archive = image_tar(tmp_path / "images", tmp_path / "x.tar.gz", num=3)
    assert (unpacked(archive, tmp_path / "out") / "data/a/2.jpg").exists()
    first = os.stat(unpacked(archive, tmp_path / "out") / "data/a/2.jpg")
    assert os.stat(unpacked(archive, tmp_path / "out") / "data/a/2.jpg").st_ino == first.st_ino
    image_tar(tmp_path / "images", tmp_path / "x.tar.gz", num=5)
    assert prepare("folder", archive, tmp_path / "out").num_train == 8


def test_a_member_cannot_say_that_all_is_done(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(".done"))
        tar.addfile(tarfile.TarInfo("../x"))
    for _ in range(2):
        with pytest.raises(DataError, match=r"x\.tar: the path '\.\./x' leads outside"):
            unpacked(tmp_path / "x.tar", tmp_path / "out")
