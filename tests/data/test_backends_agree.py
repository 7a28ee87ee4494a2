"""Pillow, DALI and the cache execute one plan: same samples, order, boxes and flips; pixels within tolerances."""

import numpy as np
import pytest
import torch
from image_folders import picture, write_folder

from slca_fast.config import DataConfig
from slca_fast.data import dali
from slca_fast.data import plan as P
from slca_fast.data.index import load_dataset
from slca_fast.data.sources import open_source
from slca_fast.errors import DataError, UserError

needs_dali = pytest.mark.skipif(dali.why_not() is not None, reason=str(dali.why_not()))
BACKENDS = ["pillow", "cache", pytest.param("dali", marks=needs_dali)]
# Levels of 255: largest, mean, and the share of values that differ by more than one. The cache is exact. DALI's CPU
# decoder gives Pillow's pixels, but its resampling rounds once where Pillow rounds and clamps to 8 bits after each
# axis: of 15 million values 19% differ by 1, 5 in 100,000 by more, at most by 6 (beside saturated highlights); a
# brightness factor stretches that to 1 in 100 by more.
LEVELS = {"cache": (0, 0, 0), "dali": (8, 0.3, 0.02)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = write_folder(tmp_path_factory.mktemp("images") / "set", per_class=6, size=None)
    for i, (height, width) in enumerate([(300, 420), (33, 500), (500, 33), (64, 64)]):
        picture(height, width, i).save(root / f"train/ant/big{i}.jpg", quality=92)
    picture(90, 70).convert("L").save(root / "train/bee/grey.jpg")
    picture(90, 70).convert("CMYK").save(root / "train/bee/cmyk.jpg")
    picture(90, 70).quantize(16).save(root / "train/bee/palette.png")
    picture(90, 70).save(root / "train/bee/progressive.jpg", progressive=True, quality=80)
    picture(90, 70).save(root / "train/cat/named_wrongly.png", format="JPEG")
    picture(90, 70).save(root / "train/cat/lossless.webp", lossless=True)
    return root


def make(root, backend, **options):
    config = DataConfig(root=str(root), num_workers=2, image_size=64, backend=backend, **options)
    index = load_dataset(config).train
    return config, index, open_source(index, config)


def plan_of(index, recipe, epoch=3):
    def plan(ids):
        if recipe == "test":
            return P.test_plan("imagenet-r", 64, index.height_N[ids], index.width_N[ids])
        return P.train_plan(recipe, 64, 5, 1, epoch, ids, index.height_N[ids], index.width_N[ids])

    return plan


def run(source, id_batches, plan):
    batches = list(source.batches(id_batches, plan))
    ids = torch.cat([b.sample_id_B for b in batches])
    return ids, torch.cat([b.label_B for b in batches]), torch.cat([b.images for b in batches])


def levels(images, config):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    return (images * std + mean) * 255


@pytest.mark.parametrize("recipe", ["imagenet-r", "cub200", "cifar100", "none", "test"])
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_backends_agree(folder, backend, recipe):
    config, index, source = make(folder, backend, recipe="none" if recipe == "test" else recipe)
    _, _, pillow = make(folder, "pillow")
    batches = np.array_split(P.epoch_order(5, 1, 3, np.arange(index.num_images)), 5)
    expected_ids, expected_labels, expected = run(pillow, batches, plan_of(index, recipe))
    for _ in range(2):
        ids, labels, images = run(source, batches, plan_of(index, recipe))
        assert torch.equal(ids, expected_ids) and torch.equal(labels, expected_labels)
        difference = (levels(images, config) - levels(expected, config)).abs()
        largest, mean, share = LEVELS[backend]
        assert difference.max() <= largest + 1e-3 and difference.mean() <= mean
        assert (difference > 1.5).float().mean() <= (share if recipe == "cifar100" else share / 20)
    source.close()
    pillow.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_and_batches_do_not_show(folder, backend):
    """1 to 4 ranks, and a continuation from the middle on another number of ranks, see the same pixels."""
    _, index, source = make(folder, backend)
    order = P.epoch_order(5, 1, 3, np.arange(index.num_images))
    global_batches = np.array_split(order, 3)
    _, _, expected = run(source, global_batches, plan_of(index, "imagenet-r"))
    image_of = dict(zip(order.tolist(), expected))
    for num_ranks, start in ((2, 0), (3, 0), (4, 0), (3, 1), (1, 2)):
        for rank in range(num_ranks):
            shards = [batch[rank::num_ranks] for batch in global_batches[start:]]
            ids, _, images = run(source, shards, plan_of(index, "imagenet-r"))
            assert ids.tolist() == np.concatenate(shards).tolist()
            assert all(torch.equal(image, image_of[i]) for i, image in zip(ids.tolist(), images))
    source.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_runtime_problems_follow_the_policy(tmp_path, backend):
    root = write_folder(tmp_path / "set", per_class=3, size=(80, 90))
    _, index, source = make(root, backend)
    _, _, lenient = make(root, backend, policy="quarantine")
    good = index.path_of(4).read_bytes()
    plan = plan_of(index, "imagenet-r")
    broken = {
        1: good[: len(good) * 2 // 3],
        3: b"",
        4: b"\xff\xd8\xff" + bytes(500) + b"\xff\xd9",
    }
    for sample_id, content in broken.items():
        index.path_of(sample_id).write_bytes(content)
        with pytest.raises(DataError, match=index.paths[sample_id]):
            list(source.batches([np.array([0, sample_id])], plan))
    index.path_of(6).unlink()
    picture(40, 200).save(index.path_of(7))
    ids, labels, images = run(lenient, [np.arange(3), np.array([3, 4]), np.arange(5, 9)], plan)
    assert ids.tolist() == [0, 2, 5, 8] and len(images) == 4 and labels.tolist() == [0, 0, 1, 2]
    assert [p.path for p in lenient.problems] == [index.paths[i] for i in (1, 3, 4, 6, 7)]
    assert "40" in lenient.problems[-1].reason
    # the source goes on working after a failure
    assert run(source, [np.array([0, 2])], plan)[0].tolist() == [0, 2]
    source.close()
    lenient.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_abandoned_iteration_changes_nothing(folder, backend):
    _, index, source = make(folder, backend)
    batches = np.arange(index.num_images // 2 * 2).reshape(-1, 2)
    _, _, expected = run(source, batches, plan_of(index, "imagenet-r"))
    _, _, fresh = make(folder, backend)
    for _ in fresh.batches(batches[::-1], plan_of(index, "imagenet-r")):
        break
    ids, _, images = run(fresh, batches, plan_of(index, "imagenet-r"))
    assert ids.tolist() == batches.ravel().tolist() and torch.equal(images, expected)
    source.close()
    fresh.close()


def test_cache_stays_within_its_budget_and_streams_the_rest(tmp_path):
    root = write_folder(tmp_path / "set", classes=("a", "b"), per_class=4, size=(100, 100))
    config, index, source = make(root, "cache", cache_budget_gb=2 * 5 * 30_000 / 1e9)
    plan = plan_of(index, "imagenet-r")
    _, _, expected = run(
        open_source(index, DataConfig(root=str(root), backend="pillow", image_size=64)), [np.arange(8)], plan
    )
    assert "a task that does not fit is streamed" in source.reason
    for task in ([0, 1, 2, 3], [4, 5, 6, 7], [2, 3, 4]):
        for _ in range(2):
            ids, _, images = run(source, [np.array(task[:2]), np.array(task[2:])], plan)
            assert ids.tolist() == task
            assert (levels(images, config) - levels(expected[task], config)).abs().max() <= 1.001
            assert source.held_bytes <= 5 * 30_000
    assert source.held_bytes == 3 * 30_000 or source.held_bytes == 5 * 30_000
    _, _, images = run(source, [np.arange(8)], plan)
    assert torch.equal(images, expected)
    assert "8 images of 0.00 GB decoded do not fit" in source.reason and "streamed by pillow" in source.reason
    source.close()
    assert source.held_bytes == 0


def test_cache_decodes_each_image_once(folder, monkeypatch):
    from slca_fast.data import cache

    _, index, source = make(folder, "cache")
    decoded = []
    real = cache.decoded_pixels
    monkeypatch.setattr(cache, "decoded_pixels", lambda i, n, e: decoded.append(n) or real(i, n, e))
    for epoch in range(3):
        order = P.epoch_order(5, 1, epoch, np.arange(index.num_images))
        run(source, np.array_split(order, 4), plan_of(index, "imagenet-r", epoch))
    assert sorted(decoded) == list(range(index.num_images))
    source.close()


def test_decoders_of_plain_jpegs_agree(folder, monkeypatch):
    """The cache holds the same bytes with torchvision's decoder and, once that is gone, with Pillow's."""
    from slca_fast.data import jpeg

    _, index, source = make(folder, "pillow")
    source.close()
    assert index.plain_N.sum() > 10
    fast = [jpeg.decoded_pixels(index, i, False) for i in range(index.num_images)]
    monkeypatch.setattr(jpeg, "_by_torchvision", lambda content: None)
    assert all(np.array_equal(a, jpeg.decoded_pixels(index, i, False)) for i, a in enumerate(fast))


def test_choice_is_explained(folder):
    def chosen(**options):
        _, _, source = make(folder, **options)
        source.close()
        return source.backend, source.reason

    backend, reason = chosen(backend="auto")
    assert backend == "cache" and "GB of host memory: all fit" in reason
    assert chosen(backend="auto", cache="off")[0] == "pillow"
    with pytest.raises(UserError, match=r"data\.cache is 'off'"):
        chosen(backend="cache", cache="off")
    with pytest.raises(UserError, match=r"data\.cache is 'gpu'"):
        chosen(backend="auto", cache="gpu")


def test_dali_missing_is_said(folder, monkeypatch):
    monkeypatch.setattr(dali, "why_not", lambda: "DALI cannot be imported (no module); install the extra 'dali'")
    with pytest.raises(UserError, match="install the extra 'dali'"):
        make(folder, "dali")
