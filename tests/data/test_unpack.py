"""Archives that are hostile, damaged or none at all are refused, and nothing lands outside."""

import io
import tarfile
import zipfile

import pytest

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
