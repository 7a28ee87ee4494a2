"""Every method in the table: the combinations it refuses, and the nearest class mean against numbers made by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slca_fast.config import Config
from slca_fast.errors import UserError
from slca_fast.methods.base import Method
from slca_fast.methods.presets import MAKERS, PRESETS
from slca_fast.methods.table import METHODS, method_class
from slca_fast.model.head import LinearClassifier


def changed(config: Config, **sections) -> Config:
    """``config`` with some fields of some sections replaced."""
    made = {}
    for name, value in sections.items():
        section = getattr(config, name)
        made[name] = dataclasses.replace(section, **value) if dataclasses.is_dataclass(section) else value
    return dataclasses.replace(config, **made)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_named_alike_in_the_table_its_class_and_its_presets(name: str) -> None:
    found = method_class(name)
    assert issubclass(found, Method) and found.name == name
    assert MAKERS[name]("cub200", "in21k").method == name == PRESETS[f"demo-{name}"]().method


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_combination_that_makes_sense(preset: str) -> None:
    config = PRESETS[preset]()
    method_class(config.method).check(config)


def test_an_unknown_method_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"--method is 'slcap': .*did you mean slca"):
        method_class("slcap")


REFUSED = [
    ("demo-slca", {"align": {"mean_scaling": False, "feature_scale": 0.02}}, "--align.feature_scale is 0.02"),
    ("demo", {"align": {"mean_scaling": True, "feature_scale": 0.0}}, "--align.mean_scaling is True"),
    ("demo-seqft", {"optim": {"backbone_lr_scale": 0.1}}, "--optim.backbone_lr_scale is 0.1"),
    ("demo-slowft", {"optim": {"backbone_lr_scale": 1.0}}, "--optim.backbone_lr_scale is 1"),
    ("demo-probe", {"model": {"trainable": "full"}}, "--model.trainable is 'full'"),
    ("demo-joint", {"tasks": {"sizes": (5, 5)}}, r"--tasks.sizes is \[5, 5\]"),
    ("demo-joint", {"tasks": {"scenario": "dil"}}, "--tasks.scenario is 'dil'"),
    ("demo-slca", {"method_settings": {"metric": "cosine"}}, "--method_settings.metric: method slca has no settings"),
    ("demo-ncm", {"method_settings": {"metrik": "cosine"}}, "--method_settings.metrik: method ncm has metric, temp"),
    (
        "demo-ncm",
        {"method_settings": {"metric": "manhattan"}},
        "--method_settings.metric is .manhattan.: give one of cosine, euclidean",
    ),
    ("demo-ncm", {"method_settings": {"temperature": "hot"}}, "--method_settings.temperature is .hot.: give a number"),
    ("demo-ncm", {"method_settings": {"temperature": 0.0}}, "--method_settings.temperature is 0.0"),
]


@pytest.mark.parametrize("preset, change, message", REFUSED)
def test_a_combination_that_makes_no_sense_is_refused_by_name(preset, change, message) -> None:
    config = changed(PRESETS[preset](), **change)
    with pytest.raises(UserError, match=message):
        method_class(config.method).check(config)


def ncm(**settings) -> Method:
    config = dataclasses.replace(PRESETS["demo-ncm"](), method_settings=settings)
    return method_class("ncm")(config, 3)


def heads(*sizes: int) -> LinearClassifier:
    return LinearClassifier(torch.zeros(sum(sizes), 3), torch.zeros(sum(sizes)), sizes)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(["cosine", "euclidean"]), st.floats(0.01, 10))
def test_nearest_mean_is_the_formula_in_float64(seed: int, metric: str, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(30, 3)), np.concatenate([np.arange(4), rng.integers(0, 4, 26)])
    new = rng.normal(size=(5, 3))
    method = ncm(metric=metric, temperature=temperature)
    for task, labels in enumerate(((0, 1), (2, 3))):
        rows = np.isin(y, labels)
        method.remember(task, torch.tensor(x[rows]).float(), torch.tensor(y[rows]), {})
    classifier = method.classifier(heads(2, 2), 1)
    mean = np.stack([x[y == c].mean(0) for c in range(4)])
    if metric == "cosine":
        norms = np.linalg.norm(new, axis=1)[:, None] * np.linalg.norm(mean, axis=1)
        expected = new @ mean.T / norms / temperature
    else:
        expected = -((new[:, None] - mean) ** 2).sum(-1) / 2 / temperature
    scores = classifier.scores(torch.tensor(new).float()).numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    # The linear form ranks alike: it differs by a factor or a summand of the image alone.
    linear = classifier.linear().scores(torch.tensor(new).float()).numpy()
    if metric == "cosine":
        linear = linear / np.linalg.norm(new, axis=1)[:, None]
    else:
        linear = linear - (new**2).sum(1)[:, None] / 2 / temperature
    np.testing.assert_allclose(linear, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_label_without_images_is_never_chosen() -> None:
    method = ncm()
    method.remember(0, torch.eye(3)[:2], torch.tensor([0, 2]), {})
    scores = method.classifier(heads(3), 0).scores(torch.randn(8, 3))
    assert (scores[:, 1] == -torch.inf).all() and scores[:, [0, 2]].isfinite().all()


def test_means_come_back_from_their_file_and_damage_is_found(tmp_path) -> None:
    method, again = ncm(), ncm()
    method.remember(0, torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 1, 0]), {})
    method.save(0, tmp_path / "means")
    again.load(0, tmp_path / "means", torch.device("cpu"))
    assert method.tensors().keys() == again.tensors().keys()
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in method.tensors().items())
    content = bytearray((tmp_path / "means").read_bytes())
    content[-1] ^= 1
    (tmp_path / "means").write_bytes(content)
    with pytest.raises(ValueError, match="means"):
        ncm().load(0, tmp_path / "means", torch.device("cpu"))
    (tmp_path / "means").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="means"):
        ncm().load(0, tmp_path / "means", torch.device("cpu"))
