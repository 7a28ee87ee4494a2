"""Preparing data sets from made-up archives of the published layouts; hostile pickles; interruptions; counts."""

import json
import os
import pickle
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from image_folders import load, picture, tree
from PIL import Image

from slca_fast.data.prepare import place, prepare
from slca_fast.data.prepare.split import listed_split, seeded_split
from slca_fast.datasets import DATASETS
from slca_fast.errors import DataError, UserError


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(20, 24, seed).save(path)


def tar_of(folder, archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return archive


def imagenet_r(tmp_path):
    for name in ("n01443537", "n02000001", "n03000002"):
        for i in range(10):
            save(tmp_path / "imagenet-r" / name / f"art_{i}.jpg", i)
    return tmp_path / "imagenet-r"


def test_imagenet_r_by_seed_and_by_lists(tmp_path):
    source = imagenet_r(tmp_path)
    archive = tar_of(source, tmp_path / "imagenet-r.tar.gz")
    report = prepare("imagenet-r", archive, tmp_path / "a", seed=3, check_counts=False)
    assert (report.num_train, report.num_test, report.num_classes, report.num_new) == (24, 6, 3, 30)
    dataset = load(tmp_path / "a")
    assert np.bincount(dataset.test.label_N).tolist() == [2, 2, 2]
    assert not (tmp_path / "a/.unpacked").exists()
    assert json.loads((tmp_path / "a/prepared.json").read_text())["options"] == {"split": "seed 3"}
    again = prepare("imagenet-r", source, tmp_path / "b", seed=3, check_counts=False)
    assert again.num_new == 30 and load(tmp_path / "b").test.paths == dataset.test.paths
    prepare("imagenet-r", source, tmp_path / "c", seed=4, check_counts=False)
    assert load(tmp_path / "c").test.paths != dataset.test.paths

    (tmp_path / "train.txt").write_text("".join(f"./imagenet-r/train/{p[6:]} 0\n" for p in dataset.train.paths))
    (tmp_path / "test.txt").write_text("".join(f"{p[5:]}\n" for p in dataset.test.paths))
    lists = {"train_list": tmp_path / "train.txt", "test_list": tmp_path / "test.txt"}
    prepare("imagenet-r", source, tmp_path / "d", check_counts=False, **lists)
    assert load(tmp_path / "d").train.paths == dataset.train.paths
    (tmp_path / "test.txt").write_text("n01443537/no.jpg\n")
    with pytest.raises(DataError, match=r"lists n01443537/no\.jpg"):
        prepare("imagenet-r", source, tmp_path / "e", check_counts=False, **lists)
    with pytest.raises(UserError, match="or neither"):
        prepare("imagenet-r", source, tmp_path / "e", train_list=tmp_path / "train.txt")
    with pytest.raises(DataError, match="24 train and 6 test images of 3 classes where the published"):
        prepare("imagenet-r", source, tmp_path / "e")
    assert not (tmp_path / "e" / "train").exists()


def resisc45(folder, per_class=10):
    for name in ("airplane", "storage_tank", "wetland"):
        for i in range(1, per_class + 1):
            save(folder / name / f"{name}_{i:03d}.jpg", i)
    return folder


def zip_of(folder, archive):
    with zipfile.ZipFile(archive, "w") as written:
        for path in folder.rglob("*.jpg"):
            written.write(path, path.relative_to(folder.parent))
    return archive


def test_resisc45_by_seed(tmp_path, monkeypatch):
    source = resisc45(tmp_path / "NWPU-RESISC45")
    with pytest.raises(DataError, match="24 train and 6 test .* where the published data set has 25200 train and 6300"):
        prepare("resisc45", source, tmp_path / "refused")
    monkeypatch.setitem(DATASETS, "resisc45", replace(DATASETS["resisc45"], num_train=24, num_test=6, num_classes=3))
    report = prepare("resisc45", zip_of(source, tmp_path / "NWPU-RESISC45.zip"), tmp_path / "a", seed=3)
    assert (report.num_train, report.num_test, report.num_classes, report.num_new) == (24, 6, 3, 30)
    dataset = load(tmp_path / "a")
    assert np.bincount(dataset.test.label_N).tolist() == [2, 2, 2] and "storage_tank" in dataset.class_names
    # The class folders themselves, and the folder around them beside its archive, are the same source.
    for root, given in (("b", source), ("c", tmp_path)):
        prepare("resisc45", given, tmp_path / "out" / root, seed=3)
        assert load(tmp_path / "out" / root).test.paths == dataset.test.paths
    prepare("resisc45", source, tmp_path / "d", seed=4)
    assert load(tmp_path / "d").test.paths != dataset.test.paths


def test_resisc45_by_lists_of_file_names(tmp_path):
    source = resisc45(tmp_path / "NWPU-RESISC45", per_class=5)
    names = sorted(path.name for path in source.rglob("*.jpg"))
    lists = {"train_list": tmp_path / "train.txt", "test_list": tmp_path / "test.txt"}
    lists["train_list"].write_text("".join(f"{name}\n" for name in names if not name.endswith("_002.jpg")))
    lists["test_list"].write_text("".join(f"{name}\n" for name in names if name.endswith("_002.jpg")))
    report = prepare("resisc45", source, tmp_path / "a", check_counts=False, **lists)
    assert (report.num_train, report.num_test) == (12, 3)
    assert load(tmp_path / "a").test.paths[0] == "test/airplane/airplane_002.jpg"
    lists["test_list"].write_text("airplane_099.jpg\n")
    with pytest.raises(DataError, match=r"lists airplane_099\.jpg"):
        prepare("resisc45", source, tmp_path / "b", check_counts=False, **lists)


def test_a_name_that_two_classes_have_does_not_stand_alone(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).write_text("0.jpg\n" if name == "train" else "b/1.jpg\n")
    images = {"a": ["a/0.jpg", "a/2.jpg"], "b": ["b/0.jpg", "b/1.jpg"]}
    with pytest.raises(DataError, match=r"lists 0\.jpg"):
        listed_split(images, {name: tmp_path / name for name in ("train", "test")})


def test_seeded_split_is_exact():
    images = {f"c{c}": [f"c{c}/{i}" for i in range(n)] for c, n in enumerate([7, 12, 3, 28, 50])}
    split = seeded_split(images, 0.2, 0)
    assert len(split["test"]) == 20 and len(split["train"]) == 80 and not split["test"] & split["train"]
    assert (
        {path.split("/")[0] for path in split["train"]} == {path.split("/")[0] for path in split["test"]} == set(images)
    )
    with pytest.raises(DataError, match="class b has one image only"):
        seeded_split({"a": ["1", "2"], "b": ["3"]}, 0.2, 0)


def cub200(tmp_path):
    folder = tmp_path / "CUB_200_2011"
    rows = []
    for c, name in enumerate(("001.Albatross", "002.Booby")):
        for i in range(3):
            save(folder / "images" / name / f"{name}_{i}.jpg", i)
            rows.append((f"{name}/{name}_{i}.jpg", c, int(i > 0)))
    (folder / "images.txt").write_text("".join(f"{n} {p}\n" for n, (p, _, _) in enumerate(rows, 1)))
    (folder / "train_test_split.txt").write_text("".join(f"{n} {t}\n" for n, (_, _, t) in enumerate(rows, 1)))
    return folder


def test_cub200(tmp_path):
    source = cub200(tmp_path)
    report = prepare("cub200", tar_of(source, tmp_path / "CUB.tgz"), tmp_path / "out", check_counts=False)
    assert (report.num_train, report.num_test) == (4, 2)
    assert load(tmp_path / "out").test.paths[1] == "test/002.Booby/002.Booby_0.jpg"
    (source / "images.txt").write_text("1 ../../../etc/passwd.jpg\n")
    (source / "train_test_split.txt").write_text("1 1\n")
    with pytest.raises(DataError, match="leads outside"):
        prepare("cub200", source, tmp_path / "out2", check_counts=False)


def cars_rows(dtype, rows):
    return np.array([tuple(row) for row in rows], dtype=[(name, object) for name in dtype])


CAR_NAMES = np.array(["Ram C/V Van", "AM General"], dtype=object)


def test_cars196_from_one_table(tmp_path):
    from scipy.io import savemat

    rows = []
    for i in range(6):
        save(tmp_path / f"cars/car_ims/{i:06d}.jpg", i)
        rows.append((f"car_ims/{i:06d}.jpg", 1 + i % 2, int(i >= 4)))
    table = {"annotations": cars_rows(["relative_im_path", "class", "test"], rows), "class_names": CAR_NAMES}
    savemat(tmp_path / "cars/cars_annos.mat", table)
    report = prepare("cars196", tmp_path / "cars", tmp_path / "out", check_counts=False)
    assert (report.num_train, report.num_test, report.num_classes) == (4, 2, 2)
    assert load(tmp_path / "out").class_names == ("001 Ram C-V Van", "002 AM General")


def test_cars196_from_the_devkit(tmp_path):
    from scipy.io import savemat

    source = tmp_path / "cars"
    for split, count in (("train", 3), ("test", 2)):
        for i in range(count):
            save(tmp_path / f"cars_{split}/{i:05d}.jpg", i)
        source.mkdir(exist_ok=True)
        tar_of(tmp_path / f"cars_{split}", source / f"cars_{split}.tgz")
        rows = [(f"{i:05d}.jpg", 1 + i % 2) for i in range(count)]
        name = "cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat"
        (tmp_path / "devkit").mkdir(exist_ok=True)
        savemat(tmp_path / "devkit" / name, {"annotations": cars_rows(["fname", "class"], rows)})
    savemat(tmp_path / "devkit/cars_meta.mat", {"class_names": CAR_NAMES})
    tar_of(tmp_path / "devkit", source / "car_devkit.tgz")
    report = prepare("cars196", source, tmp_path / "out", check_counts=False)
    assert (report.num_train, report.num_test) == (3, 2)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/cars_annos.mat").write_bytes(b"no MATLAB file")
    with pytest.raises(DataError, match="no MATLAB file"):
        prepare("cars196", tmp_path / "broken", tmp_path / "out2", check_counts=False)


def test_swapped_splits_are_called_so():
    assert "swapped" in place._swapped((8041, 8144, 196), (8144, 8041, 196))
    assert place._swapped((8144, 8041, 195), (8144, 8041, 196)) == ""


def cifar100(folder, protocol=2):
    rng = np.random.default_rng(0)
    folder.mkdir()
    pixels = {}
    for split, count in (("train", 6), ("test", 4)):
        pixels[split] = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {b"data": pixels[split], b"fine_labels": [i % 2 for i in range(count)]}
        (folder / split).write_bytes(pickle.dumps(content, protocol=protocol))
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"apple", b"bear"]}, protocol=protocol))
    return pixels


def test_cifar100(tmp_path):
    pixels = cifar100(tmp_path / "cifar-100-python")
    archive = tar_of(tmp_path / "cifar-100-python", tmp_path / "cifar-100-python.tar.gz")
    report = prepare("cifar100", archive, tmp_path / "out", check_counts=False)
    assert (report.num_train, report.num_test, report.num_classes) == (6, 4, 2)
    found = np.asarray(Image.open(tmp_path / "out/train/bear/00003.png"))
    assert np.array_equal(found.transpose(2, 0, 1).ravel(), pixels["train"][3])
    assert load(tmp_path / "out").class_names == ("apple", "bear")


class Hostile:
    """Leaves a file in the working directory when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch was_here",))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({b"data": Hostile(), b"fine_labels": []}, protocol=2),
        pickle.dumps({b"data": np.array([Hostile()], dtype=object), b"fine_labels": [0]}, protocol=2),
        pickle.dumps({b"data": np.zeros((1, 3072), np.float32), b"fine_labels": [0]}, protocol=2),
        pickle.dumps([1, 2]),
        b"\x80\x02c__builtin__\neval\n.",
        b"",
        b"garbage",
    ],
)
def test_hostile_pickles_do_nothing(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    cifar100(tmp_path / "c")
    (tmp_path / "c/train").write_bytes(content)
    with pytest.raises(DataError, match="/train"):
        prepare("cifar100", tmp_path / "c", tmp_path / "out", check_counts=False)
    assert not list(tmp_path.rglob("was_here"))


def domainnet(folder):
    folder.mkdir()
    for domain in ("real", "sketch"):
        lines = {"train": [], "test": []}
        for label, name in enumerate(("aircraft_carrier", "zebra")):
            for i in range(3):
                path = f"{domain}/{name}/{domain}_{label}_{i}.jpg"
                save(folder / path, i)
                lines["test" if i == 2 else "train"].append(f"{path} {label}")
        for split, rows in lines.items():
            (folder / f"{domain}_{split}.txt").write_text("\n".join(rows) + "\n")
    return folder


def test_domainnet(tmp_path):
    source = domainnet(tmp_path / "dn")
    zip_of(source / "sketch", source / "sketch.zip")
    os.rename(source / "sketch", source / "hidden")
    options = {"domains": ("sketch", "real"), "check_counts": False}
    report = prepare("domainnet", source, tmp_path / "out", **options)
    assert (report.num_train, report.num_test, report.num_classes) == (8, 4, 2)
    dataset = load(tmp_path / "out")
    assert dataset.train.domain_names == ("sketch", "real") and dataset.class_names == ("aircraft_carrier", "zebra")
    assert dataset.train.domain_N.tolist() == [1, 1, 0, 0] * 2 and dataset.train.label_N.tolist() == [0] * 4 + [1] * 4
    with pytest.raises(UserError, match="each once"):
        prepare("domainnet", source, tmp_path / "x", domains=("photo",))
    with pytest.raises(DataError, match="no quickdraw"):
        (source / "quickdraw").mkdir()
        prepare("domainnet", source, tmp_path / "x", domains=("quickdraw",))
    (source / "real_test.txt").write_text("real/zebra/real_1_2.jpg 0\n")
    with pytest.raises(DataError, match=r"real_test\.txt, line 1: label 0 is zebra, elsewhere aircraft_carrier"):
        prepare("domainnet", source, tmp_path / "x", domains=("real",), check_counts=False)


def test_any_folder(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            for i in range(3):
                save(tmp_path / "s" / split / name / "deep" / f"{i}.png", i)
    assert prepare("folder", tmp_path / "s", tmp_path / "o1").num_test == 6
    report = prepare("folder", tmp_path / "s/train", tmp_path / "o2", test_fraction=0.34, link="copy")
    assert (report.num_train, report.num_test) == (4, 2)
    assert load(tmp_path / "o2").class_names == ("a", "b")
    assert os.stat(tmp_path / "o1" / load(tmp_path / "o1").train.paths[0]).st_nlink == 2
    assert os.stat(tmp_path / "o2" / load(tmp_path / "o2").train.paths[0]).st_nlink == 1


def test_interrupted_preparation_resumes(tmp_path, monkeypatch):
    source = imagenet_r(tmp_path)
    prepare("imagenet-r", source, tmp_path / "whole", check_counts=False)
    real, calls = os.link, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(os, "link", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare("imagenet-r", source, tmp_path / "cut", check_counts=False)
    monkeypatch.setattr(os, "link", real)
    assert not (tmp_path / "cut/prepared.json").exists()
    there = len([p for p in tree(tmp_path / "cut") if p.endswith(".jpg") and "/." not in p])
    report = prepare("imagenet-r", source, tmp_path / "cut", check_counts=False)
    assert report.num_new == 30 - there
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")
    assert prepare("imagenet-r", source, tmp_path / "cut", check_counts=False).num_new == 0
    with pytest.raises(DataError, match="already holds other images"):
        prepare("imagenet-r", source, tmp_path / "cut", seed=9, check_counts=False)


def test_wrong_calls_are_named(tmp_path):
    with pytest.raises(UserError, match="knows no data set 'imagenet'"):
        prepare("imagenet", tmp_path, tmp_path)
    with pytest.raises(UserError, match="has no option 'sed'"):
        prepare("imagenet-r", tmp_path, tmp_path, sed=1)
    with pytest.raises(UserError, match="needs --source"):
        prepare("cub200", None, tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        prepare("cub200", tmp_path / "no", tmp_path)
    with pytest.raises(DataError, match=r"no images\.txt in"):
        prepare("cub200", tmp_path, tmp_path / "out")
