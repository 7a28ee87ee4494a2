"""The Pillow backend against torchvision's transforms, bit for bit."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from image_folders import picture, write_folder
from torchvision.transforms import InterpolationMode

from slca_fast.config import DataConfig
from slca_fast.data import plan as P
from slca_fast.data.index import load_dataset, scan_image_folder
from slca_fast.data.pillow import render
from slca_fast.data.sources import open_source
from slca_fast.errors import DataError

BICUBIC = InterpolationMode.BICUBIC
RECIPES = ["imagenet-r", "cub200", "cifar100", "none", "test"]


def _plan_of(index, recipe, size=64, epoch=3):
    def plan_of(ids):
        if recipe == "test":
            return P.test_plan("imagenet-r", size, index.height_N[ids], index.width_N[ids])
        return P.train_plan(recipe, size, 5, 1, epoch, ids, index.height_N[ids], index.width_N[ids])

    return plan_of


def _torchvision(path, plan, row, config):
    from torchvision.datasets.folder import default_loader

    image = default_loader(str(path))
    if plan.resized_N2 is None:
        x0, y0, x1, y1 = (int(v) for v in plan.crop_box_N4[row])
        image = F.resized_crop(image, y0, x0, y1 - y0, x1 - x0, [plan.size, plan.size], BICUBIC)
    else:
        width, height = plan.resized_N2[row].tolist()
        left, top = plan.offset_N2[row].tolist()
        image = F.crop(F.resize(image, [height, width], BICUBIC), top, left, plan.size, plan.size)
    if plan.flip_N[row]:
        image = F.hflip(image)
    image = F.adjust_brightness(image, float(plan.brightness_N[row]))
    return F.normalize(F.to_tensor(image), config.mean, config.std)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images") / "set")


@pytest.mark.parametrize("recipe", RECIPES)
def test_bit_equal_to_torchvision(folder, recipe):
    config = DataConfig(root=str(folder), num_workers=2)
    index = load_dataset(config).train
    ids = P.epoch_order(5, 1, 3, np.arange(index.num_images))
    source = open_source(index, config)
    plan_of = _plan_of(index, recipe)
    batches = list(source.batches(np.array_split(ids, 4), plan_of))
    source.close()
    assert [b.images.shape[0] for b in batches] == [3, 3, 3, 3]
    plan = plan_of(ids)
    images = torch.cat([b.images for b in batches])
    assert torch.cat([b.sample_id_B for b in batches]).tolist() == ids.tolist()
    assert torch.cat([b.label_B for b in batches]).tolist() == index.label_N[ids].tolist()
    for row, sample in enumerate(ids):
        assert torch.equal(images[row], _torchvision(index.path_of(sample), plan, row, config)), (recipe, row)


def test_extreme_shapes_do_not_blow_up():
    height_N, width_N = np.array([2]), np.array([60_000])
    plan = P.test_plan("imagenet-r", 64, height_N, width_N)
    out = render(picture(2, 60_000), plan, 0)
    assert out.size == (64, 64)


@pytest.mark.parametrize("recipe", ["cub200", "test"])
def test_box_resampling_is_resize_then_crop(recipe, monkeypatch):
    # The shortcut of huge images equals the exact way up to one grey level of rounding.
    from slca_fast.data import pillow

    image = picture(301, 407)
    heights, widths = np.array([301]), np.array([407])
    plan = (
        P.test_plan("imagenet-r", 64, heights, widths)
        if recipe == "test"
        else P.train_plan(recipe, 64, 0, 0, 0, np.array([4]), heights, widths)
    )
    exact = np.asarray(render(image, plan, 0), dtype=np.int16)
    monkeypatch.setattr(pillow, "_MOST_RESIZED_PIXELS", 0)
    boxed = np.asarray(render(image, plan, 0), dtype=np.int16)
    assert np.abs(exact - boxed).max() <= 1


def test_an_abandoned_iteration_leaves_the_source_usable(folder):
    config = DataConfig(root=str(folder), num_workers=2)
    index = load_dataset(config).train
    source = open_source(index, config)
    for _ in source.batches(np.arange(12).reshape(6, 2), _plan_of(index, "imagenet-r")):
        break
    assert len(list(source.batches([np.arange(3)], _plan_of(index, "imagenet-r")))) == 1
    source.close()


def test_a_file_that_turns_bad_is_named(tmp_path):
    root = write_folder(tmp_path / "set", per_class=2)
    config = DataConfig(root=str(root), num_workers=2)
    index = scan_image_folder(root, "train", config)
    index.path_of(1).write_bytes(b"gone")
    source = open_source(index, config)
    with pytest.raises(DataError, match=r"train/ant/1\.jpg"):
        list(source.batches([np.arange(4)], _plan_of(index, "none")))
    source.close()
    picture(9, 9).save(index.path_of(1))
    source = open_source(index, config)
    with pytest.raises(DataError, match=r"train/ant/1\.jpg: decodes to 9 x 9"):
        list(source.batches([np.arange(4)], _plan_of(index, "none")))
    source.close()
