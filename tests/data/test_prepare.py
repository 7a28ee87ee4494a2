"""Preparing data sets from made-up archives of the published layouts; hostile archives; interruptions; counts."""

import io
import json
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from image_folders import picture
from PIL import Image

from slca_fast.config import DataConfig
from slca_fast.data.index import load_dataset
from slca_fast.data.prepare import place, prepare
from slca_fast.data.prepare.split import seeded_split
from slca_fast.data.prepare.unpack import unpacked
from slca_fast.errors import DataError, UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLCA_FAST_CACHE", str(tmp_path / "cache"))


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(20, 24, seed).save(path)


def tar_of(folder, archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return archive


def load(root):
    return load_dataset(DataConfig(root=str(root)))


def tree(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


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
    with zipfile.ZipFile(source / "sketch.zip", "w") as archive:
        for path in (source / "sketch").rglob("*.jpg"):
            archive.write(path, path.relative_to(source))
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


def test_synthetic_is_a_function_of_its_seed(tmp_path):
    options = {"like": "imagenet-r", "num_classes": 3, "side": 60, "scale": 0.03}
    report = prepare("synthetic", None, tmp_path / "a", **options)
    assert (report.num_train, report.num_test, report.num_classes) == (12, 3, 3)
    first = {path: (tmp_path / "a" / path).read_bytes() for path in tree(tmp_path / "a")}
    (tmp_path / "a/train/class1/00001.jpg").unlink()
    assert prepare("synthetic", None, tmp_path / "a", **options).num_new == 1
    assert (tmp_path / "a/train/class1/00001.jpg").read_bytes() == first["train/class1/00001.jpg"]
    prepare("synthetic", None, tmp_path / "b", seed=1, **options)
    assert (tmp_path / "b/train/class1/00001.jpg").read_bytes() != first["train/class1/00001.jpg"]
    report = prepare("synthetic", None, tmp_path / "d", like="domainnet", num_classes=2, side=40, scale=0.001)
    dataset = load(tmp_path / "d")
    assert dataset.train.domain_names[0] == "real" and len(dataset.train.domain_names) == 6
    assert np.bincount(dataset.train.domain_N).tolist() == [4] * 6


def test_synthetic_classes_can_be_learnt(tmp_path):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    options = {"num_classes": 8, "side": 48, "num_train": 40, "num_test": 10}
    prepare("synthetic", None, tmp_path / "a", **options)
    dataset = load(tmp_path / "a")

    def features(index):
        return np.stack(
            [
                np.histogramdd(
                    np.asarray(Image.open(index.path_of(i)).resize((32, 32)))[8:24, 8:24].reshape(-1, 3),
                    bins=4,
                    range=[(0, 256)] * 3,
                )[0].ravel()
                for i in range(index.num_images)
            ]
        )

    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    model.fit(features(dataset.train), dataset.train.label_N)
    assert model.score(features(dataset.test), dataset.test.label_N) > 0.4


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
    with pytest.raises(UserError, match="scale is 2"):
        prepare("synthetic", None, tmp_path / "s", scale=2)
