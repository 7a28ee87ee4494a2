"""The table of bad input: every case, one outcome, always the path."""

import hashlib
import json
import os
import struct
import time
import zlib

import numpy as np
import pytest
from image_folders import picture, write_folder
from PIL import Image

from slca_fast.cli import main
from slca_fast.config import DataConfig
from slca_fast.data import headers, images
from slca_fast.data.hashes import check_hashes, write_hashes
from slca_fast.data.index import load_dataset
from slca_fast.data.plan import test_plan
from slca_fast.data.sources import open_source
from slca_fast.errors import DataError


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "set", classes=("ant", "bee"), per_class=2, size=(60, 80))


def load(root, policy="quarantine", **options):
    return load_dataset(DataConfig(root=str(root), num_workers=2, policy=policy, **options))


def png_of_size(width, height, bit_depth=8):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def saved(image, path, **options):
    image.save(path, **options)
    return path.read_bytes()


def truncated(suffix, **options):
    def write(path):
        content = saved(picture(200, 200), path.with_suffix(suffix), **options)
        path.with_suffix(suffix).write_bytes(content[: len(content) * 3 // 4])
        return path.with_suffix(suffix)

    return write


def written(content):
    def write(path):
        path.write_bytes(content)
        return path

    return write


def linked(target):
    def write(path):
        os.symlink(target, path)
        return path

    return write


def fifo(path):
    os.mkfifo(path)
    return path


BAD = {
    "truncated JPEG": (truncated(".jpg"), "cannot be decoded"),
    "truncated progressive JPEG": (truncated(".jpeg", progressive=True), "cannot be decoded"),
    "truncated PNG": (truncated(".png"), "cannot be decoded"),
    "truncated WebP": (truncated(".webp"), "decoded|header|not an image"),
    "zero bytes": (written(b""), "zero bytes"),
    "HTML named .jpg": (written(b"\n<!DOCTYPE html><html><body>404</body></html>"), "a web page"),
    "text named .jpg": (written(b"hello"), "not an image"),
    "cut within the header": (written(b"\xff\xd8\xff\xe0\x00"), "header"),
    "bomb": (written(png_of_size(20000, 20000)), "20000 x 20000 pixels exceed the cap|bomb"),
    "small bomb": (written(png_of_size(12000, 10000)), "12000 x 10000 pixels exceed the cap of 100 megapixels"),
    "no pixels": (written(png_of_size(0, 5)), "header|pixels|not an image"),
    "dangling symlink": (linked("/nowhere/at/all.jpg"), "dangling symlink to /nowhere"),
    "looping symlink": (linked("x.jpg"), "looping symlink"),
    "folder that loops": (linked(".."), "looping symlink"),
    "pipe": (fifo, "not a regular file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(root, case):
    write, reason = BAD[case]
    path = write(root / "train/ant/x.jpg")
    with pytest.raises(DataError, match=reason) as caught:
        load(root, policy="fail")
    assert f"train/ant/{path.name}: " in str(caught.value)
    dataset = load(root)
    assert [p.path for p in dataset.problems] == [f"train/ant/{path.name}"]
    assert dataset.train.num_images == 4


def pixels_of(root, sample_name, backend, **options):
    config = DataConfig(
        root=str(root),
        image_size=60,
        recipe="none",
        mean=(0, 0, 0),
        std=(1, 1, 1),
        num_workers=2,
        backend=backend,
        **options,
    )
    dataset = load_dataset(config)
    sample_id = next(i for i, path in enumerate(dataset.train.paths) if sample_name in path)
    source = open_source(dataset.train, config)
    plan = lambda ids: test_plan("none", 60, dataset.train.height_N[ids], dataset.train.width_N[ids])  # noqa: E731
    (batch,) = source.batches([np.array([sample_id])], plan)
    source.close()
    return dataset, np.rint(batch.images[0].numpy().transpose(1, 2, 0) * 255).astype(int)


def ramp16():
    return np.linspace(0, 65535, 3600).round().astype(np.uint16).reshape(60, 60)


def save_16_bit(path):
    Image.fromarray(ramp16()).save(path)
    grey = (ramp16() >> 8).astype(int)
    return np.stack([grey] * 3, axis=-1)


def save_rgba(path):
    image = picture(60, 60)
    image.putalpha(picture(60, 60, 1).convert("L"))
    image.save(path)
    return np.asarray(image)[..., :3].astype(int)


def save_palette(path):
    image = picture(60, 60).quantize(32)
    image.save(path, transparency=3)
    return np.asarray(image.convert("RGB")).astype(int)


def save_animation(path):
    frames = [picture(60, 60, i).quantize(64).convert("RGB") for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    return np.asarray(frames[0]).astype(int)


def save_gif(path):
    frames = [picture(60, 60, i).quantize(64) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return np.asarray(frames[0].convert("RGB")).astype(int)


def save_cmyk(path):
    picture(60, 60).convert("CMYK").save(path, quality=95)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def save_grey(path):
    picture(60, 60).convert("L").save(path)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


CONVERTED = {
    "deep.png": (save_16_bit, ("grey", "16 bits")),
    "alpha.png": (save_rgba, ("alpha dropped",)),
    "palette.png": (save_palette, ("palette", "alpha dropped")),
    "animation.webp": (save_animation, ("first frame",)),
    "animation.gif": (save_gif, ("first frame", "palette")),
    "cmyk.jpg": (save_cmyk, ("CMYK",)),
    "grey.jpg": (save_grey, ("grey",)),
    "grey.png": (save_grey, ("grey",)),
}


@pytest.mark.parametrize("backend", ["pillow", "cache", "dali"])
@pytest.mark.parametrize("name", CONVERTED)
def test_conversions_are_made_and_counted(root, name, backend):
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    save, notes = CONVERTED[name]
    expected = save(root / "train/ant" / name)
    dataset, found = pixels_of(root, name, backend)
    assert np.abs(found - expected).max() <= (1 if backend == "dali" else 0)
    assert {note: dataset.notes.get(note) for note in notes} == {note: 1 for note in notes}


def test_16_bits_are_not_saturated(root):
    save_16_bit(root / "train/ant/deep.png")
    _, found = pixels_of(root, "deep.png", "pillow")
    assert len(np.unique(found)) == 256


@pytest.mark.parametrize("backend", ["pillow", "cache", "dali"])
def test_exif_orientation_is_an_option(root, backend):
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(60, 90).save(root / "train/ant/turned.jpg", exif=exif, quality=95)
    upright = np.asarray(Image.open(root / "train/ant/turned.jpg")).astype(int)
    dataset, ignored = pixels_of(root, "turned.jpg", backend)
    assert dataset.notes["EXIF rotated"] == 1
    assert (dataset.train.height_N[2], dataset.train.width_N[2]) == (60, 90)
    assert np.abs(ignored - upright[:, 15:75]).max() <= (1 if backend == "dali" else 0)
    dataset, turned = pixels_of(root, "turned.jpg", backend, exif_orientation=True)
    assert (dataset.train.height_N[2], dataset.train.width_N[2]) == (90, 60)
    assert np.abs(turned - np.rot90(upright, -1)[15:75]).max() <= (1 if backend == "dali" else 0)


def test_names_do_not_matter(root):
    picture(50, 50).save(root / "train/ant/ünïcödé 图片 'quoted'.jpg")
    picture(50, 50).save(root / "train/ant/UPPER.JPG")
    picture(50, 50).save(root / "train/ant/jpeg_inside.png", format="JPEG")
    picture(50, 50).save(root / "train/ant/no_extension", format="PNG")
    (root / "train/ant/deeper/still").mkdir(parents=True)
    picture(50, 50).save(root / "train/ant/deeper/still/nested.jpg")
    (root / "train/ant/.DS_Store").write_bytes(b"x")
    (root / "train/ant/notes.txt").write_bytes(b"x")
    with open(os.fsencode(root / "train/ant") + b"/latin1-\xe9.jpg", "wb") as file:
        file.write((root / "train/ant/UPPER.JPG").read_bytes())
    dataset = load(root, policy="fail")
    assert dataset.train.num_images == 10
    assert dataset.notes["wrong extension"] == 2 and dataset.notes["hidden files ignored"] == 1
    assert dataset.notes["other files ignored"] == 1
    assert load(root, policy="fail").train.fingerprint() == dataset.train.fingerprint()


def test_a_flipped_bit_is_found_by_its_hash(root, tmp_path):
    dataset = load(root)
    write_hashes(dataset, tmp_path / "hashes.json")
    assert check_hashes(dataset, tmp_path / "hashes.json") == []
    path = dataset.train.path_of(1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    dataset = load(root)
    assert not dataset.problems
    (problem,) = check_hashes(dataset, tmp_path / "hashes.json")
    assert problem.path == dataset.train.paths[1] and "differs" in problem.reason
    path.unlink()
    (problem,) = check_hashes(load(root), tmp_path / "hashes.json")
    assert problem.path == dataset.train.paths[1] and "missing" in problem.reason


def test_headers_are_read_again_only_where_files_changed(root, monkeypatch):
    first = load(root)
    read = []
    real = images.read_header
    monkeypatch.setattr(headers, "read_header", lambda path, cap: read.append(path.name) or real(path, cap))
    assert load(root).train.fingerprint() == first.train.fingerprint() and read == []
    picture(33, 44).save(root / "train/bee/1.jpg")
    picture(33, 44).save(root / "train/bee/new.jpg")
    os.unlink(root / "train/ant/0.jpg")
    dataset = load(root)
    assert sorted(read) == ["1.jpg", "new.jpg"]
    assert dataset.train.paths == ("train/ant/1.jpg", "train/bee/0.jpg", "train/bee/1.jpg", "train/bee/new.jpg")
    assert dataset.train.width_N.tolist() == [80, 80, 44, 44]
    read.clear()
    with pytest.raises(DataError, match=r"80 x 60 pixels exceed the cap of 0\.003"):
        load(root, policy="fail", max_megapixels=0.003)
    assert read == []


def test_a_damaged_or_unwritable_cache_is_no_obstacle(root, tmp_path, caplog):
    first = load(root)
    (file,) = (tmp_path / "cache/index").iterdir()
    file.write_text(file.read_text()[:-20])
    assert load(root).train.fingerprint() == first.train.fingerprint()
    assert "unreadable" in caplog.text
    file.unlink()
    (tmp_path / "cache/index").rmdir()
    (tmp_path / "cache/index").write_text("in the way")
    assert load(root).train.fingerprint() == first.train.fingerprint()
    assert "cannot be written" in caplog.text


def test_progress_counts_every_file(root):
    calls = []
    load_dataset(DataConfig(root=str(root)), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (8, 8) and [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_domains_come_from_the_folder_below_the_class(root):
    (root / "domains.json").write_text('["real", "sketch"]')
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            for domain, i in (("real", 0), ("sketch", 1)):
                (root / split / name / domain).mkdir()
                os.rename(root / split / name / f"{i}.jpg", root / split / name / domain / f"{i}.jpg")
    dataset = load(root)
    assert dataset.train.domain_names == ("real", "sketch")
    assert dataset.train.domain_N.tolist() == [0, 1, 0, 1]
    assert dataset.train.subset(np.array([3, 0])).domain_N.tolist() == [1, 0]
    picture(9, 9).save(root / "train/ant/stray.jpg")
    with pytest.raises(DataError, match=r"stray\.jpg is in no domain folder"):
        load(root)


def domain_root(tmp_path, classes=("ant", "bee", "cat"), domains=("p", "q", "r")):
    root = tmp_path / "domains"
    for split in ("train", "test"):
        for name in classes:
            for domain in domains:
                (root / split / name / domain).mkdir(parents=True)
                picture(20, 20).save(root / split / name / domain / "0.png")
    (root / "domains.json").write_text(json.dumps(domains))
    return root


def test_classes_without_images_in_a_domain_are_notes(tmp_path, capsys):
    root = domain_root(tmp_path)
    assert load(root).empty_cells == ()
    (root / "train/bee/q/0.png").unlink()
    (root / "test/cat/p/0.png").write_bytes(b"damaged")
    (root / "test/ant/r/0.png").unlink()
    (root / "test/ant/r").rmdir()
    cells = [(cell.split, cell.domain, cell.class_name) for cell in load(root).empty_cells]
    assert cells == [("train", "q", "bee"), ("test", "p", "cat"), ("test", "r", "ant")]
    assert main(["check-data", str(root), "--data.policy", "quarantine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("note: ")] == [
        "note: no image of class bee in domain q in train/",
        "note: no image of class cat in domain p in test/",
        "note: no image of class ant in domain r in test/",
    ]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("policy", ["fail", "quarantine"])
def test_a_domain_without_images_is_named(tmp_path, split, policy, capsys):
    root = domain_root(tmp_path)
    for path in (root / split).glob("*/q/0.png"):
        path.write_bytes(b"damaged") if policy == "quarantine" else path.unlink()
    assert main(["check-data", str(root), "--data.policy", policy]) == 3
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and f"{root / split} of 1 domain: q" in error


def test_a_class_without_images_in_any_domain_is_refused(tmp_path):
    root = domain_root(tmp_path)
    for path in (root / "test").glob("bee/*/0.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"1 empty class folder in .*test: bee"):
        load(root)


@pytest.mark.slow
def test_30000_files_in_a_minute_and_again_in_two_seconds(tmp_path):
    contents = [saved(picture(375, 500, i), tmp_path / "one.jpg", quality=90) for i in range(20)]
    root = tmp_path / "big"
    for split, per_class in (("train", 120), ("test", 30)):
        for c in range(200):
            folder = root / split / f"n{c:04d}"
            folder.mkdir(parents=True)
            for i in range(per_class):
                (folder / f"{i}.jpg").write_bytes(contents[i % 20])
    start = time.perf_counter()
    first = load(root, policy="fail")
    first_s = time.perf_counter() - start
    start = time.process_time()
    again = load(root, policy="fail")
    again_s = time.process_time() - start
    print(f"first {first_s:.2f} s, again {again_s:.2f} s of CPU time")
    assert first.train.num_images + first.test.num_images == 30_000
    assert hashlib.sha256(str(again.train.paths).encode()).digest() == (
        hashlib.sha256(str(first.train.paths).encode()).digest()
    )
    assert first_s < 60 and again_s < 2
