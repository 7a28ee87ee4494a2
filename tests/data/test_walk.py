"""Which files count as images: one rule for training folders, prepare and predict."""

import os

import numpy as np
import pytest
from image_folders import load, picture, write_folder
from PIL import Image

from slca_fast.cli.predict import _files
from slca_fast.config import DataConfig
from slca_fast.data.index import load_dataset
from slca_fast.data.kinds import image_kind, why_no_image
from slca_fast.data.prepare import prepare
from slca_fast.data.prepare.split import images_by_class
from slca_fast.errors import DataError, UserError

FOLDERS_OF_NOBODY = (".ipynb_checkpoints", "__MACOSX", ".thumbs", "@eaDir", "$RECYCLE.BIN")
SIDE_FILE = b"\0\5\x16\7\0\2\0\0Mac OS X        "


@pytest.fixture
def root(tmp_path):
    """Two classes of four images, with what systems leave behind at every depth."""
    root = write_folder(tmp_path / "set", classes=("ant", "bee"))
    for where in (root, root / "train", root / "test", root / "train/ant", root / "train/ant/deep"):
        for name in FOLDERS_OF_NOBODY:
            (where / name / "x").mkdir(parents=True)
            picture(9, 9).save(where / name / "0.jpg")
            picture(9, 9).save(where / name / "x" / "1.jpg")
        (where / "._0.jpg").write_bytes(SIDE_FILE)
    (root / "train/bee/folder.jpg").mkdir()
    picture(20, 20).save(root / "train/bee/folder.jpg/in.png")
    return root


def test_three_walkers_agree(root):
    dataset = load(root)
    assert dataset.class_names == ("ant", "bee")
    assert dataset.train.num_images == 9 and dataset.test.num_images == 8
    assert dataset.notes["hidden files ignored"] == 4 * (len(FOLDERS_OF_NOBODY) + 1)
    prepared = images_by_class(root / "train")
    predicted = [str(path.relative_to(root)) for path in _files([root / "train"])]
    assert predicted == list(dataset.train.paths)
    assert sorted(f"train/{path}" for paths in prepared.values() for path in paths) == sorted(predicted)
    assert prepare("folder", root, root.parent / "out").num_train == 9


def test_predict_takes_what_it_is_given_by_name(root):
    given = [root / "train/ant/.thumbs", root / "test/bee/0.jpg", root / "train/ant/._0.jpg"]
    assert list(_files(given)) == [given[0] / "0.jpg", given[0] / "x/1.jpg", *given[1:]]
    os.mkfifo(root / "pipe.jpg")
    with pytest.raises(UserError, match=r"pipe\.jpg: not a regular file"):
        list(_files([root / "pipe.jpg"]))
    with pytest.raises(DataError, match=r"pipe\.jpg: not a regular file"):
        list(_files([root]))
    with pytest.raises(UserError, match="no images in this folder"):
        list(_files([root / "train/ant/deep"]))


@pytest.mark.parametrize("name", ["p.avif", "p.jpg", "p"])
def test_images_that_are_not_read_are_named(root, name):
    pytest.importorskip("PIL._avif")
    picture(20, 20).save(root / "train/ant" / name, format="AVIF")
    reason = rf"train/ant/{name}: AVIF images are not read; convert"
    with pytest.raises(DataError, match=reason):
        load(root)
    assert load_dataset(DataConfig(root=str(root), policy="quarantine")).train.num_images == 9
    if name != "p.jpg":
        with pytest.raises(DataError, match=reason):
            list(_files([root]))
        with pytest.raises(DataError, match=reason):
            prepare("folder", root, root.parent / "out")


def riff(kind):
    return b"RIFF\x24\x00\x00\x00" + kind + b"fmt "


def test_sounds_and_films_are_no_images(root):
    (root / "train/ant/note.wav").write_bytes(riff(b"WAVE"))
    (root / "train/ant/film").write_bytes(riff(b"AVI "))
    (root / "train/ant/film.mp4").write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2")
    dataset = load(root)
    assert dataset.train.num_images == 9 and dataset.notes["other files ignored"] == 3
    (root / "train/ant/note.jpg").write_bytes(riff(b"WAVE"))
    with pytest.raises(DataError, match=r"note\.jpg: a sound \(WAV\), not an image"):
        load(root)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_formats_are_known_by_their_first_bytes(root, kind):
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / "train/ant/no_extension", format=kind)
    start = (root / "train/ant/no_extension").read_bytes()[:32]
    assert image_kind(start) == kind and why_no_image(start) is None
    assert load(root).train.num_images == 10


def test_links_to_folders_are_followed_once(root, tmp_path):
    os.symlink(root / "test/bee", root / "train/ant/linked")
    assert load(root).train.num_images == 13
    os.symlink("..", root / "train/ant/linked/up")
    for walked in (load, lambda r: list(_files([r]))):
        with pytest.raises(DataError, match="looping symlink"):
            walked(root)


def test_images_beside_the_class_folders_are_counted(root):
    picture(9, 9).save(root / "train/stray.jpg")
    assert load(root).notes["images in no class folder ignored"] == 1


def test_a_domain_is_named_once(root):
    (root / "domains.json").write_text('["real", "real"]')
    with pytest.raises(DataError, match=r"domains\.json names the domain 'real' twice"):
        load(root)
