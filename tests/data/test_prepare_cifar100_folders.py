"""`prepare cifar100` from class folders: the archive's layout, names kept, everything that is not CIFAR-100 refused."""

import os
import shutil
from dataclasses import replace

import pytest
from image_folders import load, picture, tree, write_folder
from PIL import Image
from test_prepare import cifar100, tar_of

from slca_fast.cli import main
from slca_fast.data.prepare import prepare
from slca_fast.datasets import DATASETS
from slca_fast.errors import DataError, UserError

# A class of CIFAR-100 is called train.
CLASSES = ("apple", "aquarium_fish", "train")


@pytest.fixture
def source(tmp_path):
    write_folder(tmp_path / "s/c", classes=CLASSES, per_class=3, size=(32, 32), suffix="_s_00.png")
    (tmp_path / "s/c/README.md").write_text("x")
    return tmp_path / "s/c"


def refused(source, message, error=DataError, **options):
    root, before = source.parent.parent / "refused", tree(source)
    with pytest.raises(error, match=message) as caught:
        prepare("cifar100", source, root, **({"check_counts": False} | options))
    assert "\n" not in str(caught.value)
    assert not root.exists() and tree(source) == before


@pytest.mark.parametrize("above", [False, True])
def test_names_and_bytes_stay(source, tmp_path, above):
    report = prepare("cifar100", source.parent if above else source, tmp_path / "out", check_counts=False)
    assert (report.num_train, report.num_test, report.num_classes, report.num_new) == (9, 9, 3, 18)
    names = [name for name in tree(source) if name.endswith(".png")]
    assert tree(tmp_path / "out") == sorted([*names, "prepared.json"])
    assert all((tmp_path / "out" / name).read_bytes() == (source / name).read_bytes() for name in names)
    assert load(tmp_path / "out").class_names == CLASSES
    again = prepare("cifar100", source, tmp_path / "out", check_counts=False)
    assert again.num_new == 0


@pytest.mark.parametrize("link, num_links", [("hard", 2), ("copy", 1)])
def test_link(source, tmp_path, link, num_links):
    prepare("cifar100", source, tmp_path / "out", link=link, check_counts=False)
    assert os.stat(tmp_path / "out/train/train/0_s_00.png").st_nlink == num_links


def test_from_an_archive_of_class_folders(source, tmp_path):
    report = prepare("cifar100", tar_of(source, tmp_path / "s.tgz"), tmp_path / "out", check_counts=False)
    assert report.num_train == 9 and not (tmp_path / "out/.unpacked").exists()


def test_counts_are_checked(source, tmp_path, monkeypatch):
    refused(source, "9 train and 9 test images of 3 classes where the published .* 50000 train", check_counts=True)
    monkeypatch.setitem(DATASETS, "cifar100", replace(DATASETS["cifar100"], num_train=9, num_test=9, num_classes=3))
    assert prepare("cifar100", source, tmp_path / "out").num_train == 9


def test_classes_have_the_order_of_the_archive(tmp_path):
    pixels = cifar100(tmp_path / "pickles")
    prepare("cifar100", tmp_path / "pickles", tmp_path / "a", check_counts=False)
    for split, images in pixels.items():
        for i, image in enumerate(images):
            folder = tmp_path / "s" / split / ("apple", "bear")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.reshape(3, 32, 32).transpose(1, 2, 0)).save(folder / f"{i:05d}.png")
    prepare("cifar100", tmp_path / "s", tmp_path / "b", check_counts=False)
    a, b = load(tmp_path / "a"), load(tmp_path / "b")
    assert (a.class_names, a.train.paths, a.test.paths) == (b.class_names, b.train.paths, b.test.paths)
    for path in (*a.train.paths, *a.test.paths):
        assert Image.open(tmp_path / "a" / path).tobytes() == Image.open(tmp_path / "b" / path).tobytes()
    # Beside each other the pickles are taken, as they were before class folders were known.
    os.makedirs(tmp_path / "both")
    for name in ("pickles", "s"):
        os.rename(tmp_path / name, tmp_path / "both" / name)
    prepare("cifar100", tmp_path / "both", tmp_path / "c", check_counts=False)
    assert load(tmp_path / "c").train.paths == a.train.paths


def damaged(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda path: path.write_bytes(b""), "zero bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cannot be decoded"),
        (damaged, "cannot be decoded"),
        (lambda path: path.write_text("<html></html>"), "a web page"),
        (lambda path: picture(32, 33).save(path), "PNG of 33 x 32 pixels, where CIFAR-100 has RGB PNGs of 32 x 32"),
        (lambda path: picture(32, 32).convert("L").save(path), "PNG of 32 x 32 pixels, grey, where"),
        (lambda path: picture(32, 32).save(path, format="JPEG"), "JPEG of 32 x 32 pixels, wrong extension, where"),
    ],
)
def test_bad_and_odd_images_are_named(source, spoil, reason):
    spoil(source / "test/train/1_s_00.png")
    refused(source, rf"test/train/1_s_00\.png: {reason}")
    spoil(source / "train/apple/0_s_00.png")
    refused(source, rf"train/apple/0_s_00\.png: {reason}.* \(and 1 more\)$")


@pytest.mark.parametrize("name", ["a\\b", "a\tb", "a" * 255, " apple"])
def test_class_names_are_those_of_the_archive(source, name):
    for split in ("train", "test"):
        os.rename(source / split / "train", source / split / name)
    refused(source, "class name|two classes of the name 'apple'")


def test_blanks_around_a_class_name_go_as_in_the_archive(source, tmp_path):
    for split in ("train", "test"):
        os.rename(source / split / "apple", source / split / "apple ")
    prepare("cifar100", source, tmp_path / "out", check_counts=False)
    assert load(tmp_path / "out").class_names == CLASSES


def test_other_layouts_are_refused(source, tmp_path):
    refused(source / "train", "holds neither meta, train and test of pickles nor train/ and test/ of class folders")
    os.rename(source / "test/train", source / "test/bear")
    refused(source, r"c: class bear \(and 1 more\) is in one split only")
    shutil.rmtree(source / "train")
    refused(source, "c holds test/, but no train/")
    with pytest.raises(UserError, match="lies in --source"):
        prepare("cifar100", source.parent, source.parent / "out")


def test_what_lies_beside_is_said(source, tmp_path, capsys):
    shutil.copytree(source / "test", source / "val")
    picture(32, 32).save(source / "train/stray.png")
    argv = ["prepare", "cifar100", "--source", str(source), "--root", str(tmp_path / "out"), "--check_counts", "false"]
    assert main(argv) == 0
    assert capsys.readouterr().out.strip().endswith("left out: val/, 1 image beside the classes of train/")
