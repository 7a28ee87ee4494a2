"""The index: torchvision's order, and one clear outcome for every folder that cannot be used."""

import os

import numpy as np
import pytest
from image_folders import picture, write_folder
from torchvision.datasets import ImageFolder

from slca_fast.config import DataConfig
from slca_fast.data.index import load_dataset
from slca_fast.errors import DataError


def load(root, **options):
    return load_dataset(DataConfig(root=str(root), num_workers=2, **options))


def test_order_is_torchvisions(tmp_path):
    root = write_folder(tmp_path / "set", classes=("b", "a", "C", "é"))
    for nested in ("b/x/deep", "b/x-y", "a/0", "a/00/1"):
        (root / "train" / nested).mkdir(parents=True)
        picture(9, 9).save(root / "train" / nested / "10.PNG")
        picture(9, 9).save(root / "train" / nested / "9.png")
    (root / "train/a/readme.txt").write_text("not an image")
    dataset = load(root)
    theirs = ImageFolder(root / "train")
    assert dataset.class_names == tuple(theirs.classes)
    assert [str(root / p) for p in dataset.train.paths] == [p for p, _ in theirs.samples]
    assert dataset.train.label_N.tolist() == [label for _, label in theirs.samples]
    assert dataset.notes["other files ignored"] == 1


def test_sizes_and_subset(tmp_path):
    root = write_folder(tmp_path / "set", splits=("train", "val"))
    index = load(root).train
    for i, (loaded, _) in enumerate(ImageFolder(root / "train")):
        assert loaded.size == (index.width_N[i], index.height_N[i])
        assert index.num_bytes_N[i] == os.path.getsize(index.path_of(i))
    part = index.subset(np.array([5, 0]))
    assert part.paths == (index.paths[5], index.paths[0]) and part.num_images == 2
    assert part.label_N.tolist() == [1, 0] and part.height_N.tolist() == index.height_N[[5, 0]].tolist()
    assert index.subset(index.label_N == 2).label_N.tolist() == [2] * 4


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda r: os.rename(r, str(r) + "x"), "does not exist"),
        (lambda r: os.rename(r / "test", r / "testing"), "no val/ or test/"),
        (lambda r: os.rename(r / "train", r / "training"), "found test/, training/"),
        (lambda r: (r / "train/wasp").mkdir(), r"differ.*only in train/: wasp"),
        (lambda r: (r / "test/wasp").mkdir(), r"differ.*only in test/: wasp"),
        (lambda r: os.rename(r / "test/bee", r / "test/Bee"), r"only in train/: bee; only in test/: Bee"),
        (
            lambda r: [f.unlink() for f in (r / "train/bee").iterdir()],
            r"1 empty class folder in .*train: bee",
        ),
        (lambda r: [f.unlink() for f in r.rglob("*.jpg")], "no images under"),
    ],
)
def test_wrong_layouts_are_one_line(tmp_path, break_it, message):
    root = write_folder(tmp_path / "set")
    break_it(root)
    with pytest.raises(DataError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value) and str(root) in str(caught.value)


def test_hints_at_the_right_root(tmp_path):
    root = write_folder(tmp_path / "data" / "set")
    with pytest.raises(DataError, match=r"did you mean .*/data/set"):
        load(tmp_path / "data")
    with pytest.raises(DataError, match=r"give its parent .*/data/set"):
        load(root / "train")
    with pytest.raises(DataError, match="is a file"):
        load(root / "train/ant/0.jpg")


def test_bad_files_are_all_listed(tmp_path):
    root = write_folder(tmp_path / "set")
    good = (root / "train/ant/0.jpg").read_bytes()
    (root / "train/ant/1.jpg").write_bytes(good[: len(good) * 9 // 10])
    (root / "train/bee/1.jpg").write_bytes(b"")
    (root / "test/cat/1.jpg").write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(DataError) as caught:
        load(root)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("3 bad files") and len(lines) == 4
    assert "train/ant/1.jpg: cannot be decoded" in lines[1] and "truncated" in lines[1]
    assert "train/bee/1.jpg: zero bytes" in lines[2]
    assert "test/cat/1.jpg: a web page" in lines[3]
    dataset = load(root, policy="quarantine")
    assert [p.path for p in dataset.problems] == ["train/ant/1.jpg", "train/bee/1.jpg", "test/cat/1.jpg"]
    assert dataset.train.num_images == 10 and dataset.test.num_images == 11
    for i in range(4):
        (root / f"train/bee/{i}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"no usable image is left in .*train of 1 class: bee"):
        load(root, policy="quarantine")
