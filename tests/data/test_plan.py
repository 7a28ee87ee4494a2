"""The stateless plan: known answers, independence of batching, and torchvision's own numbers."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st

from slca_fast.data import plan as P
from slca_fast.datasets import recipes

SIDES = st.integers(1, 700)


def test_philox_known_answers():
    # Random123's kat_vectors for philox4x32-10
    ones = 0xFFFFFFFF
    cases = [
        ((0, 0), (0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ones, ones), (ones,) * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for key, counter, answer in cases:
        assert " ".join(f"{word:08x}" for word in P.philox(key, counter)) == answer


def _sizes(num_images, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 600, num_images), rng.integers(1, 600, num_images)


def _fields(plan):
    return [
        plan.crop_box_N4,
        plan.clip_box_N4,
        plan.flip_N,
        plan.brightness_N,
        *([] if plan.resized_N2 is None else [plan.resized_N2, plan.offset_N2]),
    ]


@pytest.mark.parametrize("recipe", recipes())
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), task=st.integers(0, 400), epoch=st.integers(0, 400), data=st.data())
def test_plan_does_not_depend_on_chunks(recipe, seed, task, epoch, data):
    height_N, width_N = _sizes(50)
    ids = np.array(data.draw(st.permutations(range(50))))[: data.draw(st.integers(1, 50))]
    whole = P.train_plan(recipe, 48, seed, task, epoch, np.arange(50), height_N, width_N)
    part = P.train_plan(recipe, 48, seed, task, epoch, ids, height_N[ids], width_N[ids])
    for a, b, c in zip(_fields(whole), _fields(part), _fields(whole.take(ids))):
        assert np.array_equal(a[ids], b) and np.array_equal(b, c)


@pytest.mark.parametrize("change", ["seed", "task", "epoch"])
def test_plan_depends_on_every_key(change):
    height_N, width_N = np.full(200, 300), np.full(200, 400)
    keys = {"seed": 1, "task": 2, "epoch": 3}
    first = P.train_plan("imagenet-r", 64, **keys, sample_id_N=np.arange(200), height_N=height_N, width_N=width_N)
    keys[change] += 1
    other = P.train_plan("imagenet-r", 64, **keys, sample_id_N=np.arange(200), height_N=height_N, width_N=width_N)
    assert (first.crop_box_N4 == other.crop_box_N4).all(axis=1).mean() < 0.05
    assert 0.3 < (first.flip_N == other.flip_N).mean() < 0.7


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    task=st.integers(0, 50),
    epoch=st.integers(0, 50),
    ids=st.lists(st.integers(0, 2**32 - 1), unique=True, max_size=80),
)
def test_epoch_order_is_a_permutation_of_the_set(seed, task, epoch, ids):
    order = P.epoch_order(seed, task, epoch, np.array(ids, dtype=np.int64))
    assert sorted(order.tolist()) == sorted(ids) and order.dtype == np.int64
    assert np.array_equal(order, P.epoch_order(seed, task, epoch, np.array(ids[::-1], dtype=np.int64)))


def test_epoch_order_is_uniform():
    first = np.array([P.epoch_order(0, 0, epoch, np.arange(5))[0] for epoch in range(2000)])
    assert np.abs(np.bincount(first, minlength=5) / 2000 - 0.2).max() < 4 * math.sqrt(0.16 / 2000)


class _ScriptedTorch:
    """Feeds RandomResizedCrop.get_params the words of a plan instead of torch's generator."""

    def __init__(self, words_K4):
        self.words = [word for words in words_K4 for word in words]
        self.tries = iter(words_K4)

    def install(self, monkeypatch):
        real_empty, real_randint = torch.empty, torch.randint
        state = {"k": 0, "draw": 0}

        class Scripted:
            def uniform_(self, low, high):
                words = outer.words_K4[state["k"]]
                value = float(low) + (float(high) - float(low)) * int(words[state["draw"]]) * 2.0**-32
                state["draw"] += 1
                if state["draw"] == 2:
                    state["k"], state["draw"] = state["k"] + 1, 0
                return torch.tensor([value], dtype=torch.float64)

        outer = self
        outer.words_K4 = list(self.tries)
        randints = {"n": 0}

        def randint(low, high, size):
            words = outer.words_K4[state["k"] - 1]
            value = low + (int(words[2 + randints["n"] % 2]) * (high - low) >> 32)
            randints["n"] += 1
            return torch.tensor([value])

        monkeypatch.setattr(torch, "empty", lambda *a, **k: Scripted() if a == (1,) else real_empty(*a, **k))
        monkeypatch.setattr(torch, "randint", randint)
        return real_randint


@pytest.mark.parametrize("size", [(300, 400), (31, 500), (500, 31), (1, 1), (3, 900), (224, 224)])
def test_boxes_are_torchvisions(size, monkeypatch):
    height, width = size
    for sample in range(40):
        words = np.stack([P._words(7, 1, 2, np.array([sample]), P.CROP, k)[0] for k in range(10)])
        plan = P.train_plan("imagenet-r", 64, 7, 1, 2, np.array([sample]), np.array([height]), np.array([width]))
        with monkeypatch.context() as patched:
            _ScriptedTorch(words).install(patched)
            i, j, h, w = T.RandomResizedCrop.get_params(torch.zeros(3, height, width), [0.08, 1.0], [3 / 4, 4 / 3])
        assert plan.crop_box_N4[0].tolist() == [j, i, j + w, i + h]


@settings(max_examples=200, deadline=None)
@given(height=SIDES, width=SIDES, size=st.integers(1, 256), recipe=st.sampled_from(sorted(recipes())))
def test_test_plan_is_resize_then_centre_crop(height, width, size, recipe):
    plan = P.test_plan(recipe, size, np.array([height]), np.array([width]))
    short = size if recipe == "none" else size * 256 // 224
    new_height, new_width = T.functional._compute_resized_output_size((height, width), [short])
    assert plan.resized_N2[0].tolist() == [new_width, new_height]
    rows = torch.arange(new_height).view(1, -1, 1).expand(1, -1, new_width)
    columns = torch.arange(new_width).view(1, 1, -1).expand(1, new_height, -1)
    left, top = plan.offset_N2[0].tolist()
    assert T.functional.center_crop(rows, [size, size])[0, 0, 0] == top
    assert T.functional.center_crop(columns, [size, size])[0, 0, 0] == left
    assert not plan.flip_N[0] and plan.brightness_N[0] == 1
    box = plan.crop_box_N4[0]
    assert -1e-9 <= box[0] < box[2] <= width + 1e-9 and -1e-9 <= box[1] < box[3] <= height + 1e-9


def test_recipes_scale_with_the_input():
    plan = P.train_plan("cub200", 224, 0, 0, 0, np.arange(500), np.full(500, 333), np.full(500, 500))
    assert (plan.resized_N2 == 300).all() and plan.offset_N2.min() == 0 and plan.offset_N2.max() == 76
    assert (P.train_plan("cub200", 112, 0, 0, 0, [0], [9], [9]).resized_N2 == 150).all()
    jitter = P.train_plan("cifar100", 224, 0, 0, 0, np.arange(4000), np.full(4000, 32), np.full(4000, 32)).brightness_N
    assert 1 - 63 / 255 <= jitter.min() < 0.76 and 1.24 < jitter.max() <= 1 + 63 / 255 and abs(jitter.mean() - 1) < 0.01
    none = P.train_plan("none", 32, 5, 1, 2, [3], [40], [60])
    assert not none.flip_N[0] and none.resized_N2[0].tolist() == [48, 32]


def test_crop_statistics_are_torchvisions():
    ours = P.train_plan("imagenet-r", 224, 0, 0, 0, np.arange(4000), np.full(4000, 300), np.full(4000, 400))
    box = ours.crop_box_N4
    our_area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / 120000
    torch.manual_seed(0)
    image = torch.zeros(3, 300, 400)
    theirs = np.array([T.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    their_area = theirs[:, 2] * theirs[:, 3] / 120000
    from scipy.stats import ks_2samp

    assert ks_2samp(our_area, their_area).pvalue > 1e-3
    assert ks_2samp(box[:, 0], theirs[:, 1]).pvalue > 1e-3
    assert ks_2samp(box[:, 1], theirs[:, 0]).pvalue > 1e-3


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="imagenet-x"):
        P.train_plan("imagenet-x", 32, 0, 0, 0, [0], [9], [9])
    with pytest.raises(ValueError, match="shapes"):
        P.train_plan("none", 32, 0, 0, 0, [0, 1], [9], [9])
    with pytest.raises(ValueError, match="at least 1"):
        P.test_plan("none", 32, [0], [9])
    with pytest.raises(ValueError, match="seed -1"):
        P.epoch_order(-1, 0, 0, np.arange(3))
