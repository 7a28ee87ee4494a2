"""`prepare folder`: split names are understood or refused, stray files do not matter, the source stays whole."""

import os
import shutil

import pytest
from image_folders import load, picture, tree, write_folder

from slca_fast.cli import main
from slca_fast.data.prepare import prepare
from slca_fast.errors import DataError, UserError


@pytest.fixture
def source(tmp_path):
    return write_folder(tmp_path / "s", classes=("cat", "dog"), per_class=5, size=(20, 20), suffix=".png")


def prepared(source, **options):
    root = source.parent / "out"
    shutil.rmtree(root, ignore_errors=True)
    report = prepare("folder", source, root, **options)
    assert load(root).class_names == ("cat", "dog")
    return report


def refused(source, message, error=DataError):
    root, before = source.parent / "refused", tree(source)
    with pytest.raises(error, match=message) as caught:
        prepare("folder", source, root)
    assert "\n" not in str(caught.value)
    assert not root.exists() and tree(source) == before


@pytest.mark.parametrize("name", ["test", "Test", "testing", "val", "valid", "validation", "dev", "eval"])
@pytest.mark.parametrize("train", ["train", "TRAIN", "training"])
def test_split_names_are_understood(source, train, name):
    os.rename(source / "train", source / train)
    os.rename(source / "test", source / name)
    report = prepared(source)
    assert (report.num_train, report.num_test, report.options["split"]) == (10, 10, f"{train} and {name} as found")


def test_train_alone_beside_a_table_is_split_by_the_seed(source):
    shutil.rmtree(source / "test")
    (source / "labels.csv").write_text("x")
    report = prepared(source)
    assert (report.num_train, report.num_test, report.options["split"]) == (8, 2, "seed 0")


def test_a_folder_in_a_folder_is_entered_whatever_files_are_beside(source, tmp_path):
    (tmp_path / "outer/inner").mkdir(parents=True)
    os.rename(source, tmp_path / "outer/inner/pets")
    (tmp_path / "outer/README.txt").write_text("x")
    (tmp_path / "outer/inner/LICENSE").write_text("x")
    assert prepared(tmp_path / "outer").num_test == 10


def test_what_is_not_used_is_said(source, capsys):
    shutil.copytree(source / "test", source / "val")
    (source / "docs").mkdir()
    picture(9, 9).save(source / "train/stray.png")
    assert main(["prepare", "folder", "--source", str(source), "--root", str(source.parent / "out")]) == 0
    assert capsys.readouterr().out.strip().endswith("left out: docs/, val/, 1 image beside the classes of train/")


def test_an_unlabelled_test_folder_gives_way_to_validation(source):
    os.rename(source / "test", source / "val")
    (source / "test").mkdir()
    picture(9, 9).save(source / "test/0.png")
    assert prepared(source).options == {"split": "train and val as found", "left_out": ["test/"]}
    shutil.rmtree(source / "val")
    refused(source, "test holds no class folders")


@pytest.mark.parametrize(
    "names, message",
    [
        ({"train": "train_set", "test": "test_set"}, "test_set looks like a split"),
        ({"train": "seg_train", "test": "seg_test"}, "looks like a split"),
        ({"train": "pets-train", "test": "pets-val"}, "looks like a split"),
        ({"train": "trainA", "test": "testA"}, "looks like a split"),
        ({"train": "train", "test": "unlabelled"}, "train looks like a split"),
        ({"train": "labelled", "test": "validation"}, "validation looks like a split"),
    ],
)
def test_names_like_splits_are_refused(source, names, message):
    for old, new in names.items():
        os.rename(source / old, source / f"_{new}")
    for new in names.values():
        os.rename(source / f"_{new}", source / new)
    refused(source, message)


def test_more_than_one_reading_is_refused(source, tmp_path):
    shutil.copytree(source / "train", source / "training")
    refused(source, "holds both train/ and training/")
    shutil.rmtree(source / "training")
    shutil.copytree(source, tmp_path / "two/pets")
    shutil.copytree(source, tmp_path / "two/wild")
    refused(tmp_path / "two", r"two/pets holds splits \(test/, train/\)")
    shutil.rmtree(tmp_path / "two/wild")
    picture(9, 9).save(tmp_path / "two/0.png")
    refused(tmp_path / "two", r"images beside its only folder pets/")


@pytest.mark.parametrize("below", ["", "deep", "deep/deeper"])
def test_one_class_is_refused(tmp_path, below):
    folder = tmp_path / "s/cat" / below
    folder.mkdir(parents=True)
    for i in range(4):
        picture(9, 9, i).save(folder / f"{i}.png")
    refused(tmp_path / "s", "holds one class only")


def test_a_class_may_be_called_train(tmp_path):
    for name in ("aeroplane", "bullet_train", "train", "test_tube"):
        (tmp_path / "s" / name).mkdir(parents=True)
        for i in range(5):
            picture(9, 9, i).save(tmp_path / "s" / name / f"{i}.png")
    assert prepare("folder", tmp_path / "s", tmp_path / "out").num_classes == 4


@pytest.mark.parametrize("below", ["", "out", "cat/out"])
@pytest.mark.parametrize("data", ["folder", "imagenet-r", "resisc45"])
def test_the_root_is_never_in_the_source(source, data, below):
    before = tree(source)
    for _ in range(2):
        with pytest.raises(UserError, match="lies in --source"):
            prepare(data, source / "train", source / "train" / below)
    assert tree(source) == before


def test_the_source_is_not_where_the_images_go(source, tmp_path):
    with pytest.raises(UserError, match="keeps its images"):
        prepare("folder", source / "train", source)
    os.symlink(source, tmp_path / "link")
    with pytest.raises(UserError, match="lies in --source"):
        prepare("folder", source, tmp_path / "link")


def test_domains_go_along(source):
    for folder in [*(source / "train").iterdir(), *(source / "test").iterdir()]:
        for domain, names in (("real", "012"), ("sketch", "34")):
            (folder / domain).mkdir()
            for name in names:
                os.rename(folder / f"{name}.png", folder / domain / f"{name}.png")
    (source / "domains.json").write_text('["sketch", "real"]')
    prepared(source)
    assert load(source.parent / "out").train.domain_names == ("sketch", "real")


def test_links_out_of_the_source_are_refused(source, tmp_path):
    picture(9, 9).save(tmp_path / "outside.png")
    link = source / "train/cat/link.png"
    os.symlink(tmp_path / "outside.png", link)
    refused(source, r"link\.png is a link that leads out of")
    os.unlink(link)
    (tmp_path / "other").mkdir()
    os.rename(tmp_path / "outside.png", tmp_path / "other/o.png")
    os.symlink(tmp_path / "other", source / "train/cat/folder")
    refused(source, r"o\.png is a link that leads out of")
    os.unlink(source / "train/cat/folder")
    os.symlink("../dog/0.png", link)
    assert prepared(source).num_train == 11


@pytest.mark.parametrize("by_link", [False, True])
def test_pipes_and_dangling_links_are_refused(source, tmp_path, by_link):
    path = source / "train/cat/pipe.png"
    os.mkfifo(tmp_path / "pipe" if by_link else path)
    if by_link:
        os.symlink(tmp_path / "pipe", path)
    refused(source, r"pipe\.png: not a regular file")
    os.unlink(path)
    os.symlink("nowhere", path)
    refused(source, r"pipe\.png: dangling symlink")


def test_a_refused_call_leaves_the_domains_alone(tmp_path):
    size = {"num_classes": 2, "side": 16, "num_train": 1, "num_test": 1}
    prepare("synthetic", None, tmp_path / "out", **size)
    with pytest.raises(DataError, match="already holds other images"):
        prepare("synthetic", None, tmp_path / "out", like="domainnet", **size)
    assert load(tmp_path / "out").train.domain_names == ()
