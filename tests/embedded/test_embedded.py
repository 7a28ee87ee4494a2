"""The embedded digits and the embedded letters weights."""

import errno
import json
import os
import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from slca_fast.embedded import embedded_weights_info, embedded_weights_path, write_digits
from slca_fast.embedded.digits import MARKER, is_complete, split_indices
from slca_fast.embedded.glyphs import CHARACTERS, MEAN, STD, LetterBatches, build_atlas
from slca_fast.embedded.pretrain import pretrain


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


def test_digits_have_the_documented_layout(digits):
    files = {part: list((digits / part).glob("*/*.png")) for part in ("train", "test")}
    assert {part: len(f) for part, f in files.items()} == {"train": 1438, "test": 359}
    for part in files:
        assert sorted(p.name for p in (digits / part).iterdir()) == [str(c) for c in range(10)]
    with Image.open(files["test"][0]) as image:
        assert image.size == (32, 32) and image.mode == "RGB"
    assert not {p.name for p in files["train"]} & {p.name for p in files["test"]}


def test_split_is_stratified_and_fixed():
    labels = np.repeat(np.arange(10), 20)
    train, test = split_indices(labels)
    assert (np.bincount(labels[test]) == 4).all() and len(train) + len(test) == 200
    assert np.array_equal(test, split_indices(labels)[1])


def test_digits_are_deterministic_and_left_alone_when_complete(digits, tmp_path):
    again = write_digits(tmp_path / "digits")
    assert (again / MARKER).read_text() == (digits / MARKER).read_text()
    before = (again / MARKER).stat().st_mtime_ns
    assert write_digits(again) == again and (again / MARKER).stat().st_mtime_ns == before
    assert [p.name for p in tmp_path.iterdir()] == ["digits"]


@pytest.mark.slow
def test_damaged_digits_are_redone(digits, tmp_path):
    root = tmp_path / "digits"
    shutil.copytree(digits, root)
    next((root / "train" / "3").glob("*.png")).unlink()
    next((root / "test" / "5").glob("*.png")).write_bytes(b"half")
    assert not is_complete(root)
    write_digits(root)
    assert is_complete(root) and (root / MARKER).read_text() == (digits / MARKER).read_text()


def test_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    import slca_fast.embedded.digits as module

    real, calls = module.digit_image, []

    def interrupted(levels):
        calls.append(1)
        if len(calls) > 30:
            raise KeyboardInterrupt
        return real(levels)

    monkeypatch.setattr(module, "digit_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_other_peoples_folders_are_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a digits folder"):
        write_digits(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def _model(pretrained: bool):
    from timm import create_model

    info = embedded_weights_info()
    torch.manual_seed(0)
    model = create_model(info["model_name"], num_classes=0, **info["model_kwargs"]).eval()
    if pretrained:
        model.load_state_dict({k: v.float() for k, v in load_file(embedded_weights_path()).items()}, strict=True)
    return model


def test_weights_are_small_complete_and_described():
    from timm import create_model

    info = embedded_weights_info()
    assert embedded_weights_path().stat().st_size <= 6_000_000
    weights = load_file(embedded_weights_path())
    assert {v.dtype for v in weights.values()} == {torch.float16}
    assert all(v.isfinite().all() for v in weights.values())
    model = create_model(info["model_name"], num_classes=10, **info["model_kwargs"])
    result = model.load_state_dict(weights, strict=False)
    assert set(result.missing_keys) == {"head.weight", "head.bias"} and not result.unexpected_keys
    assert info["mean"] == list(MEAN) and info["std"] == list(STD)
    assert "digits" in info["data"] and not any(c.isnumeric() for c in info["characters"])


def test_final_norm_is_the_identity_affine():
    weights = load_file(embedded_weights_path())
    assert (weights["norm.weight"] == 1).all() and (weights["norm.bias"] == 0).all()


@lru_cache
def _lda_accuracy(pretrained: bool) -> float:
    from sklearn.datasets import load_digits
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    from slca_fast.embedded.digits import digit_image

    data = load_digits()
    train, test = split_indices(data.target)
    pixels = np.stack([np.asarray(digit_image(x)) for x in data.images]).transpose(0, 3, 1, 2) / 255.0
    image = torch.tensor((pixels - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]).float()
    model = _model(pretrained)
    with torch.inference_mode():
        feature = torch.cat([model(chunk) for chunk in image.split(256)]).double().numpy()
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1e-3).fit(feature[train], data.target[train])
    return 100 * lda.score(feature[test], data.target[test])


@pytest.mark.slow
def test_frozen_features_separate_digits():
    assert _lda_accuracy(True) >= LDA_FLOOR


@pytest.mark.slow
def test_random_features_do_not_reach_the_floor():
    assert _lda_accuracy(False) < LDA_FLOOR


LDA_FLOOR = 95.0


def test_no_digits_can_enter_the_pretraining():
    assert len(set(CHARACTERS)) == len(CHARACTERS) and all(c.isalpha() for c in CHARACTERS)
    with pytest.raises(ValueError, match="no digits"):
        build_atlas("AB3", ("DejaVuSans",))


def test_letter_batches_are_seeded_and_normalised():
    atlas = build_atlas("ABCЖ", ("DejaVuSans", "cmr10"))
    assert atlas.count.tolist() == [2, 2, 2, 1]
    (x, y), (x2, y2) = (LetterBatches(atlas, 32, seed=3)(64) for _ in range(2))
    assert torch.equal(x, x2) and torch.equal(y, y2)
    assert x.shape == (64, 3, 32, 32) and x.dtype == torch.float32 and set(y.tolist()) <= set(range(4))
    grey = x * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert grey.min() >= -1e-5 and grey.max() <= 1 + 1e-5
    assert not torch.equal(x, LetterBatches(atlas, 32, seed=4)(64)[0])


def test_pretraining_repeats_itself_bit_for_bit(tmp_path):
    small = {
        "steps": 4, "batch_size": 8, "seed": 5, "characters": "ABCD", "fonts": ("DejaVuSans",), "evaluate": 16,
        "log_every": 0, "model_kwargs": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
    }  # fmt: skip
    info = pretrain(tmp_path / "a.safetensors", **small)
    pretrain(tmp_path / "b.safetensors", **small)
    pretrain(tmp_path / "c.safetensors", **{**small, "seed": 6})
    a, b, c = ((tmp_path / f"{n}.safetensors").read_bytes() for n in "abc")
    assert a == b and a != c
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == info
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json"] * 3 + [".safetensors"] * 3


def test_a_full_disk_is_named(tmp_path, monkeypatch) -> None:
    def full(self: Image.Image, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_digits(tmp_path / "digits")
    assert raised.value.filename == str(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []
