"""Made-up images: a function of their seed, learnable, shaped like the data sets they stand in for."""

import numpy as np
import pytest
from image_folders import load, tree
from PIL import Image

from slca_fast.data.prepare import prepare, synthetic
from slca_fast.errors import UserError


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


@pytest.mark.parametrize(
    "like, counts",
    [
        ("cub200", (200 * 2, 200 * 1, 200)),
        ("resisc45", (45 * 28, 45 * 7, 45)),
    ],
)
def test_synthetic_numbers_are_scaled(tmp_path, monkeypatch, like, counts):
    monkeypatch.setattr(synthetic, "_save", lambda key, side, side_spread, path: path.touch())
    report = prepare("synthetic", None, tmp_path / "a", like=like, scale=0.05)
    assert (report.num_train, report.num_test, report.num_classes) == counts


def test_wrong_numbers_are_named(tmp_path):
    with pytest.raises(UserError, match="scale is 2"):
        prepare("synthetic", None, tmp_path / "s", scale=2)
    with pytest.raises(UserError, match=r"--like is 'cub20': give one of .*did you mean cub200\?"):
        prepare("synthetic", None, tmp_path / "s", like="cub20")
