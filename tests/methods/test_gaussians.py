"""ClassGaussians: exact streamed moments, factors made once, samples, files."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_truth import conditioned_features, relative_error, spread_of

from slca_fast.methods import gaussians_factors, gaussians_file
from slca_fast.methods.gaussians import ClassGaussians


def measured(features, labels, chunks=1, **settings):
    gaussians = ClassGaussians(features.shape[1], **settings)
    for rows, classes in zip(features.chunk(chunks), labels.chunk(chunks)):
        gaussians.update(rows, classes)
    return gaussians


def some_rows(num_rows, dim, num_classes, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64) * 2 + 5
    return features.to(dtype), torch.randint(0, num_classes, (num_rows,), generator=generator)


@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(1, 80),
    dim=st.integers(1, 20),
    num_classes=st.integers(1, 6),
    cuts=st.lists(st.integers(0, 80), max_size=5),
    storage=st.sampled_from(["auto", "dense"]),
    seed=st.integers(0, 99),
    look=st.booleans(),
)
def test_any_order_and_chunking_gives_numpys_moments(num_rows, dim, num_classes, cuts, storage, seed, look):
    features, labels = some_rows(num_rows, dim, num_classes, seed)
    gaussians = ClassGaussians(dim, storage=storage)
    edges = [0, *sorted(min(c, num_rows) for c in cuts), num_rows]
    for start, end in itertools.pairwise(edges):
        gaussians.update(features[start:end], labels[start:end])
        if look and end > start:
            gaussians.factorize()
    assert gaussians.num_classes == int(labels.max()) + 1
    assert gaussians.counts.tolist() == labels.bincount().tolist()
    for c in labels.unique().tolist():
        rows = features[labels == c].double().numpy()
        np.testing.assert_allclose(gaussians.means[c].numpy(), rows.mean(0), rtol=1e-13)
        truth = np.cov(rows.T).reshape(dim, dim) if len(rows) > 1 else np.zeros((dim, dim))
        np.testing.assert_allclose(
            gaussians.covariance(c).numpy(), truth, rtol=0, atol=1e-12 * max(1, abs(truth).max())
        )


@pytest.mark.parametrize("storage", ["auto", "dense"])
@pytest.mark.parametrize("chunks", [1, 7])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_covariance_error_at_condition_1e6(dtype, bound, chunks, storage):
    features = conditioned_features(120, 768, 1e6).to(dtype)
    gaussians = measured(features, torch.zeros(120, dtype=torch.int64), chunks, accumulate_dtype=dtype, storage=storage)
    truth = np.cov(features.double().numpy().T)
    assert relative_error(gaussians.covariance(0), truth) <= bound
    gaussians.factorize()
    assert relative_error(gaussians.covariance(0), truth) <= bound


@pytest.mark.parametrize("storage", ["auto", "dense"])
@pytest.mark.parametrize("num_rows", [1, 2, 9, 12, 200])
def test_samples_have_the_mean_and_covariance_plus_ridge(num_rows, storage):
    dim = 24
    features, labels = some_rows(3 * num_rows, dim, 1, seed=num_rows, dtype=torch.float64)
    labels = torch.arange(3 * num_rows) % 3
    gaussians = measured(features, labels, ridge=1e-2, storage=storage)
    samples, sample_labels = gaussians.sample(6000, seed=17)
    assert samples.shape == (18_000, dim) and samples.dtype == torch.float32
    assert torch.equal(sample_labels, torch.arange(3).repeat_interleave(6000))
    for c in range(3):
        target = gaussians.covariance(c) + 1e-2 * torch.eye(dim)
        radius, mean, z_score = spread_of(samples[sample_labels == c], gaussians.means[c], target)
        assert radius > 1e-3 and mean > 1e-3 and abs(z_score) < 4


@pytest.mark.parametrize("storage", ["auto", "dense"])
@pytest.mark.parametrize(
    "rows",
    [
        torch.full((1, 8), 3.0),
        torch.full((30, 8), 3.0),
        torch.eye(8)[:2].repeat(20, 1),
        torch.randn(3, 8),
        torch.zeros(5, 8),
    ],
    ids=["one", "constant", "duplicates", "few", "zero"],
)
def test_degenerate_classes_factor(rows, storage):
    gaussians = measured(rows, torch.zeros(len(rows), dtype=torch.int64), storage=storage)
    samples, _ = gaussians.sample(50, seed=1)
    assert samples.isfinite().all()
    bound = 6.8 * float((gaussians.covariance(0).diagonal() + 1e-4).sqrt().max())
    assert (samples - rows.mean(0)).abs().max() < bound
    assert (0 in gaussians.flags()) == (len(rows) <= 8)


def test_samples_do_not_depend_on_chunking_history_or_subset():
    features, labels = some_rows(300, 16, 4, dtype=torch.float64)
    at_once = measured(features, labels)
    task_by_task = ClassGaussians(16)
    for c in (0, 1, 2, 3):
        task_by_task = task_by_task.extended(measured(features[labels == c], labels[labels == c], chunks=2))
        task_by_task.sample(3, classes=[c])
    ours, _ = at_once.sample(20, seed=5)
    torch.testing.assert_close(task_by_task.sample(20, seed=5)[0], ours, rtol=1e-5, atol=1e-5)
    subset, labels = at_once.sample(20, seed=5, classes=[3, 1])
    assert labels.tolist() == [3] * 20 + [1] * 20
    torch.testing.assert_close(subset, torch.cat([ours[60:], ours[20:40]]))


def test_generator_decides_the_samples():
    gaussians = measured(*some_rows(90, 6, 2))
    first, _ = gaussians.sample(5, generator=torch.Generator().manual_seed(3))
    again, _ = gaussians.sample(5, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    gaussians.sample(5, generator=generator)
    other, _ = gaussians.sample(5, generator=generator)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_mean_scale_moves_the_means_only():
    gaussians = measured(*some_rows(60, 6, 3))
    plain, labels = gaussians.sample(4, seed=2)
    scale = torch.tensor([0.9, 1.0, 0.5])
    scaled, _ = gaussians.sample(4, seed=2, mean_scale_C=scale)
    shift = (gaussians.means * (scale[:, None] - 1)).float()[labels]
    torch.testing.assert_close(scaled - plain, shift, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        gaussians.sample(4, mean_scale_C=torch.ones(2))


def test_every_class_is_factored_once(monkeypatch):
    factored = []
    real = gaussians_factors.cholesky_factor
    monkeypatch.setattr(gaussians_factors, "cholesky_factor", lambda m, r: (factored.append(len(m)), real(m, r))[1])
    features, labels = some_rows(400, 8, 4)
    gaussians = measured(features, labels)
    for _ in range(3):
        gaussians.sample(2)
    gaussians = gaussians.extended(measured(features[labels < 2], labels[labels < 2] + 4))
    for _ in range(3):
        gaussians.sample(2)
    gaussians.update(features[labels == 1], labels[labels == 1])
    gaussians.sample(2)
    assert factored == [4, 2, 1]


def test_classes_of_one_kind_are_drawn_together(monkeypatch):
    drawn = []
    for name in ("sample_gaussians", "sample_low_rank"):
        real = getattr(gaussians_factors, name)
        monkeypatch.setattr(
            gaussians_factors,
            name,
            lambda mean, *args, real=real, name=name, **kwargs: (
                drawn.append((name, len(mean))),
                real(mean, *args, **kwargs),
            )[1],
        )
    labels = torch.cat([torch.arange(3).repeat_interleave(3), torch.arange(3, 7).repeat_interleave(30)])
    gaussians = measured(some_rows(len(labels), 12, 1)[0], labels)
    gaussians.sample(2, seed=0)
    gaussians.sample(2, seed=0, classes=[5, 1, 4])
    assert drawn == [("sample_low_rank", 3), ("sample_gaussians", 4), ("sample_low_rank", 1), ("sample_gaussians", 2)]


@pytest.mark.parametrize("num_rows", [3, 40])
def test_a_stream_of_small_tasks_is_drawn_in_few_calls(monkeypatch, num_rows):
    kind = gaussians_factors.LowRankFactors if num_rows == 3 else gaussians_factors.CholeskyFactors
    draw, sizes = kind.draw, []
    monkeypatch.setattr(kind, "draw", lambda self, *args: (sizes.append(len(self.classes)), draw(self, *args))[1])
    stream, whole = ClassGaussians(16), ClassGaussians(16)
    for task in range(21):
        features, _ = some_rows(num_rows, 16, 1, seed=task)
        label = torch.full((num_rows,), task)
        whole.update(features, label)
        of_task = measured(features, label)
        of_task.factorize()
        stream = stream.extended(of_task)
    samples, labels = stream.sample(5, seed=7)
    assert sizes == [16, 4, 1]
    expected, expected_labels = whole.sample(5, seed=7)
    assert torch.equal(labels, expected_labels)
    np.testing.assert_allclose(samples, expected, rtol=1e-5, atol=1e-5)


def test_extended_leaves_both_values_alone():
    features, labels = some_rows(200, 10, 4, dtype=torch.float64)
    old, new = measured(features[labels < 3], labels[labels < 3]), measured(features[labels > 1], labels[labels > 1])
    before = (
        {k: v.clone() for k, v in old.state_tensors().items()},
        {k: v.clone() for k, v in new.state_tensors().items()},
    )
    both = old.extended(new)
    both.update(features, labels)
    for value, state in zip((old, new), before):
        assert all(torch.equal(value.state_tensors()[k], v) for k, v in state.items())
    assert both.counts.tolist() == (2 * labels.bincount() + torch.tensor([0, 0, 1, 0]) * (labels == 2).sum()).tolist()
    repeated = torch.cat([features[labels == 2]] * 3)
    np.testing.assert_allclose(both.covariance(2), np.cov(repeated.numpy().T), atol=1e-12)
    with pytest.raises(ValueError, match="10 here and 11"):
        old.extended(ClassGaussians(11))


def test_select_keeps_ids():
    gaussians = measured(*some_rows(100, 6, 5))
    gaussians.factorize()
    part = gaussians.select(2, 4)
    assert part.counts.tolist() == [0, 0, *gaussians.counts[2:4].tolist()]
    ours, _ = part.sample(3, seed=1, classes=[2, 3])
    assert torch.equal(ours, gaussians.sample(3, seed=1, classes=[2, 3])[0])
    whole = gaussians.select(0, 2).extended(part).extended(gaussians.select(4, 5))
    torch.testing.assert_close(whole.sample(3, seed=1), gaussians.sample(3, seed=1))


def test_empty_classes_are_allowed_but_not_sampled():
    features, _ = some_rows(10, 4, 1)
    gaussians = measured(features, torch.full((10,), 3))
    assert gaussians.num_classes == 4 and gaussians.counts.tolist() == [0, 0, 0, 10]
    assert not gaussians.means[:3].any()
    assert gaussians.sample(2, classes=[3])[0].shape == (2, 4)
    for call in (lambda: gaussians.sample(2), lambda: gaussians.covariance(0)):
        with pytest.raises(ValueError, match="class 0 has no rows"):
            call()
    with pytest.raises(ValueError, match="class 4"):
        gaussians.covariance(4)
    assert set(gaussians.flags()) == {0, 1, 2}


def test_no_image_feature_is_kept():
    """After factoring, no kept row is an image's feature, centred or not."""
    features, labels = some_rows(8, 64, 1, dtype=torch.float64)
    gaussians = measured(features, labels)
    kept = torch.nn.functional.normalize(gaussians.state_tensors()["low_rank_rows"], dim=1)
    rows = torch.nn.functional.normalize(features - features.mean(0), dim=1)
    assert kept.shape == (7, 64) and (kept @ rows.mT).abs().max() < 0.999


@pytest.mark.parametrize("storage", ["auto", "dense"])
def test_file_round_trip_is_exact(tmp_path, storage):
    features, labels = some_rows(150, 12, 5)
    labels[labels == 3] = 6
    gaussians = measured(features, labels, ridge=1e-3, storage=storage)
    gaussians.update(*some_rows(4, 12, 2, seed=9))
    path = tmp_path / "gaussians.safetensors"
    gaussians.save(path)
    loaded = ClassGaussians.load(path)
    assert (loaded.ridge, loaded.num_classes, loaded.storage) == (1e-3, 7, storage)
    state = gaussians.state_tensors()
    assert list(state) == sorted(state) and all(torch.equal(v, loaded.state_tensors()[k]) for k, v in state.items())
    wanted = [c for c in range(7) if loaded.counts[c]]
    assert torch.equal(loaded.sample(9, seed=4, classes=wanted)[0], gaussians.sample(9, seed=4, classes=wanted)[0])
    loaded.update(features, labels)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_state_file_and_samples_keep_their_form(tmp_path):
    """All that depends on no processor's rounding, over classes with no, one, few and many rows, is as it ever was."""
    labels = torch.tensor([0] + [2] * 3 + [3] * 4 + [4] * 20 + [6] * 9)
    gaussians = measured(some_rows(len(labels), 12, 1)[0], labels, chunks=2)
    gaussians.save(tmp_path / "g.safetensors")
    with safetensors.safe_open(tmp_path / "g.safetensors", framework="pt") as file:
        metadata, names = file.metadata(), sorted(file.keys())
    assert metadata["gaussians"] == (
        '{"accumulate_dtype": "float64", "factor_dtype": "float64", "feature_dim": 12, '
        '"format": "slca_fast.ClassGaussians/1", "num_classes": 7, "ridge": 0.0001, "storage": "auto"}'
    )
    features, drawn_labels = gaussians.sample(3, seed=1, classes=[6, 0, 3])
    seen = hashlib.sha256()
    for name, tensor in {**gaussians.state_tensors(), "features": features, "labels": drawn_labels}.items():
        seen.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        if not tensor.is_floating_point():
            seen.update(str(tensor.tolist()).encode())
    assert names == list(gaussians.state_tensors())
    assert seen.hexdigest() == "dff76558cbbb72c78658ac2c5e79577a93416576b9d625a03872f5d39ba22c16"


def test_file_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        measured(*some_rows(5, 3, 1)).save(tmp_path / "g.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "g.safetensors").stat().st_mode) == 0o640


def test_any_flipped_bit_is_refused_or_harmless(tmp_path):
    gaussians = measured(*some_rows(12, 4, 2))
    path = tmp_path / "g.safetensors"
    gaussians.save(path)
    good = path.read_bytes()
    state = gaussians.state_tensors()
    refused = 0
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 1 << (position % 8)
        path.write_bytes(data)
        try:
            loaded = ClassGaussians.load(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert all(torch.equal(v, loaded.state_tensors()[k]) for k, v in state.items())
    assert refused > 0.95 * len(good)
    for cut in (0, 7, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(ValueError, match=r"g\.safetensors"):
            ClassGaussians.load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(2)}))
    with pytest.raises(ValueError, match="no gaussians"):
        ClassGaussians.load(path)
    measured(*some_rows(5, 3, 1)).save(path)
    tensors, header = gaussians_file.read(path)
    gaussians_file.write(path, tensors, {**header, "format": "slca_fast.ClassGaussians/9"})
    with pytest.raises(ValueError, match="ClassGaussians/9"):
        ClassGaussians.load(path)
    with pytest.raises(FileNotFoundError):
        ClassGaussians.load(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("as_numpy", [True, False])
def test_from_moments_of_other_code_bases(as_numpy):
    features, labels = some_rows(200, 6, 2, dtype=torch.float64)
    truth = measured(features, labels)
    means = truth.means.numpy() if as_numpy else truth.means.float()
    covariances = torch.stack([truth.covariance(c) for c in range(2)]).float()
    ours = ClassGaussians.from_moments(means, covariances, truth.counts)
    for c in range(2):
        torch.testing.assert_close(ours.covariance(c), truth.covariance(c), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.sample(4, seed=1), truth.sample(4, seed=1), rtol=1e-4, atol=1e-4)
    assert ClassGaussians.from_moments(means, covariances).counts.tolist() == [7, 7]
    with pytest.raises(ValueError, match="class 1 holds NaN"):
        ClassGaussians.from_moments(means, torch.stack([covariances[0], covariances[1] * torch.nan]))
    with pytest.raises(ValueError, match=r"\(2, 6\) and \(6, 6\)"):
        ClassGaussians.from_moments(means, covariances[0])


def test_autocast_and_grad_do_not_touch_statistics():
    features, labels = some_rows(60, 8, 2)
    truth = measured(features, labels, accumulate_dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = measured(features.requires_grad_(), labels, accumulate_dtype=torch.float32)
        samples, _ = ours.sample(3, seed=1)
        torch.testing.assert_close(ours.covariance(1), truth.covariance(1), rtol=0, atol=0)
    assert torch.equal(samples, truth.sample(3, seed=1)[0]) and not samples.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_feature_dtypes(dtype):
    features, labels = some_rows(40, 5, 2, dtype=dtype)
    gaussians = measured(features, labels)
    truth = np.cov(features[labels == 1].double().numpy().T)
    np.testing.assert_allclose(gaussians.covariance(1).numpy(), truth, atol=1e-12)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3).long(), r"\[N, 4\].*\(3, 5\)"),
        (torch.zeros(3, 4).long(), torch.zeros(3).long(), "int64"),
        (torch.zeros(3, 4), torch.zeros(2).long(), r"\(3,\).*\(2,\)"),
        (torch.zeros(3, 4), torch.zeros(3), "float32"),
        (torch.zeros(3, 4), torch.tensor([0, -2, 1]), "-2"),
        (
            torch.tensor([[0.0] * 4, [0, torch.nan, 0, 0], [0, 0, 0, torch.inf]]),
            torch.tensor([0, 5, 1]),
            "class 5 .* 2 of 3",
        ),
    ],
)
def test_bad_updates_are_named_and_change_nothing(features, labels, message):
    gaussians = measured(torch.ones(2, 4), torch.zeros(2).long())
    with pytest.raises(ValueError, match=message):
        gaussians.update(features, labels)
    assert gaussians.counts.tolist() == [2]


def test_bad_settings_are_named():
    for settings_, message in (
        ({"feature_dim": 0}, "0"),
        ({"feature_dim": 2, "ridge": -1}, "-1"),
        ({"feature_dim": 2, "storage": "x"}, "x"),
        ({"feature_dim": 2, "accumulate_dtype": torch.bfloat16}, "bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            ClassGaussians(**settings_)


def test_an_unfactorable_class_is_named():
    gaussians = measured(*some_rows(90, 4, 3))
    gaussians.update(torch.full((5, 4), torch.nan), torch.full((5,), 2), check=False)
    with pytest.raises(ValueError, match="class 2 cannot be factored"):
        gaussians.sample(1)


@pytest.mark.parametrize("feature_dim", (4.0, "4", True, None))
def test_a_width_that_is_no_integer_is_refused(feature_dim):
    with pytest.raises(ValueError, match="feature_dim must be an integer"):
        ClassGaussians(feature_dim)


def test_a_class_asked_for_twice_is_refused():
    gaussians = ClassGaussians(3)
    gaussians.update(torch.randn(12, 3), torch.arange(12) % 3)
    with pytest.raises(ValueError, match=r"differ from each other, got \[1, 1, 0\]"):
        gaussians.sample(2, classes=[1, 1, 0])


def test_an_absurd_class_id_is_refused_before_memory_is_taken():
    gaussians = ClassGaussians(3)
    with pytest.raises(ValueError, match="below 1000000, got 30000000"):
        gaussians.update(torch.randn(2, 3), torch.tensor([0, 30_000_000]))
    assert gaussians.num_classes == 0
