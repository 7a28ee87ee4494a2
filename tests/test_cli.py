"""The command line as a user meets it: exit codes, one-line errors, nothing written by a refused command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import TINY_ARGS, slca_fast, write_images

from slca_fast.cli import main
from slca_fast.config_file import config_from_dict, config_to_dict, config_to_yaml
from slca_fast.presets import DATASETS, METHODS, PRESETS


@pytest.fixture
def images(tmp_path) -> Path:
    return write_images(tmp_path / "images")


def refused(capsys, code: int, *args: str) -> str:
    """Runs a command that must fail with ``code`` and one line; returns the line."""
    assert main(args) == code
    error = capsys.readouterr().err
    assert error.startswith("slca-fast: error: ") and "Traceback" not in error
    return error.strip()


def test_misspelt_key_names_the_right_one(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, 2, "train", "demo", "--model.nmae", "x")
    assert "--model.nmae" in line and "did you mean --model.name?" in line and "\n" not in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args, expected",
    [
        (("train", "demi"), "did you mean demo?"),
        (("train",), "name a preset or a YAML file"),
        (("train", "absent.yaml"), "absent.yaml: No such file"),
        (("train", "demo", "--optim.epochs", "0"), "--optim.epochs is 0: train for at least 1 epoch"),
        (("train", "demo", "--optim.epochs", "two"), "--optim.epochs"),
        (("train", "demo", "--optim.lr", "nan"), "--optim.lr"),
        (("train", "demo", "--tasks.sizes", "[3,3]"), "sums to 6 but the data set has 10 classes"),
        (("train", "demo", "--tasks.initial", "11"), "--tasks.initial is 11 but the data set has 10 classes"),
        (("train", "demo", "--seeds", "1,x"), "--seeds 1,x: give integers"),
        (("train", "demo", "--model.checkpoint", "absent.pth"), "--model.checkpoint absent.pth: no such file"),
        (("train", "demo", "--runtime.device", "cuda:99"), "--runtime.device cuda:99"),
        (("train", "demo", "--align.mean_scaling", "true"), "exclude each other"),
        (("train", "demo", "--resume"), "holds no run"),
        (("evaluate", "nowhere"), "nowhere holds no readable run"),
        (("report", "nowhere"), "nowhere"),
    ],
)
def test_user_errors_are_one_line_with_exit_code_2(capsys, tmp_path, monkeypatch, args, expected) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, 2, *args)
    assert expected in line and "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_of_another_width_is_refused(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(
        capsys,
        2,
        "train",
        "demo",
        "--model.kwargs",
        "{img_size: 32, patch_size: 8, embed_dim: 96, depth: 6, num_heads: 3}",
    )
    assert "its width is 192 but --model.name has width 96" in line
    assert list(tmp_path.iterdir()) == []


def test_wrong_root_empty_class_and_class_only_in_test_exit_with_3(capsys, tmp_path, images) -> None:
    out = str(tmp_path / "out")
    base = ("train", "demo", *TINY_ARGS, "--output", out, "--data.root")
    assert "does not exist" in refused(capsys, 3, *base, str(tmp_path / "nowhere"))
    assert "did you mean" in refused(capsys, 3, *base, str(tmp_path))
    (images / "train" / "class9").mkdir()
    (images / "test" / "class9").mkdir()
    assert "empty class folder" in refused(capsys, 3, *base, str(images))
    (images / "train" / "class9").rmdir()
    assert "only in test" in refused(capsys, 3, *base, str(images))
    assert not Path(out).exists()


def test_yaml_files_override_a_preset_and_unknown_keys_are_named(capsys, tmp_path) -> None:
    good = tmp_path / "mine.yaml"
    good.write_text("preset: slca-cub200-in21k\noptim:\n  epochs: 7\nmodel:\n  kwargs: {drop_path_rate: 0.1}\n")
    assert main(["train", str(good), "--optim.lr", "0.5", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "epochs: 7" in printed and "lr: 0.5" in printed and "drop_path_rate: 0.1" in printed
    bad = tmp_path / "bad.yaml"
    bad.write_text("optim:\n  epoch: 7\n")
    assert "unknown key optim.epoch; did you mean optim.epochs?" in refused(capsys, 2, "train", str(bad))
    bad.write_text("optim: [1, 2\n")
    assert "not valid YAML" in refused(capsys, 2, "train", str(bad))
    bad.write_text("just text")
    assert "must hold a mapping" in refused(capsys, 2, "train", str(bad))


def test_every_promised_preset_exists_and_survives_yaml(capsys) -> None:
    assert main(["presets"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    promised = {f"{m}-{d}-{w}" for m in METHODS for d in DATASETS for w in ("in21k", "mocov3")} | {"demo"}
    assert promised <= listed == set(PRESETS)
    for name, make in PRESETS.items():
        config = make()
        assert config_from_dict(config_to_dict(config)) == config, name
        assert "optim" in config_to_yaml(config)


def test_published_hyper_parameters() -> None:
    # (preset, epochs, temperature, weight decay, scale, (a, b), milestones), from the published configurations.
    table = [
        ("slca-cifar100-in21k", 20, 0.1, 5e-4, 0.01, (1, 0), (18,)),
        ("slca-imagenet-r-in21k", 50, 0.1, 5e-4, 0.01, (1, 0), (40,)),
        ("slca-cars196-mocov3", 90, 0.05, 5e-4, 0.01, (1, 0), (80,)),
        ("slcapp-cifar100-in21k", 20, 0.1, 5e-4, 0.1, (1, 0.1), (18,)),
        ("slcapp-imagenet-r-in21k", 50, 0.1, 0, 0.1, (0.5, 0.5), (40,)),
        ("slcapp-cub200-mocov3", 90, 0.1, 5e-4, 0.1, (1, 0.1), (60, 80)),
        ("slcapp-cars196-in21k", 50, 0.05, 0, 0.1, (0.5, 0.5), (40,)),
    ]
    for name, epochs, temperature, decay, scale, weights, milestones in table:
        config = PRESETS[name]()
        optim, loss = config.optim, config.loss
        assert (
            optim.epochs,
            config.align.temperature,
            optim.weight_decay,
            optim.backbone_lr_scale,
            (loss.ce_weight, loss.rce_weight),
            optim.milestones,
        ) == (epochs, temperature, decay, scale, weights, milestones)
        assert (optim.lr, optim.batch_size, config.align.epochs, config.align.samples_per_class) == (0.01, 128, 5, 256)


def test_two_presets_and_two_seeds_end_in_one_comparison(images, tmp_path, capsys) -> None:
    output = tmp_path / "out"
    assert (
        main(
            [
                "train",
                "demo-seqft",
                "demo",
                *TINY_ARGS,
                "--tasks.sizes",
                "[2,2]",
                "--data.root",
                str(images),
                "--seeds",
                "1,2",
                "--output",
                str(output),
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert "Seq FT" in text and "SLCA++" in text
    assert {str(p.parent.relative_to(output)) for p in output.rglob("summary.json")} == {
        "demo-seqft/seed1",
        "demo-seqft/seed2",
        "demo/seed1",
        "demo/seed2",
    }
    assert (output / "report.html").is_file() and (output / "demo/seed1/report.html").is_file()


@pytest.mark.slow
def test_a_whole_session_in_real_processes(images, tmp_path) -> None:
    run, args = (
        str(tmp_path / "run"),
        ["train", "demo", *TINY_ARGS, "--tasks.sizes", "[2,2]", "--data.root", str(images)],
    )
    trained = slca_fast(*args, "--output", run)
    assert trained.returncode == 0, trained.stderr
    assert "after task 2/2" in trained.stdout and "\x1b" not in trained.stdout
    summary = json.loads(Path(run, "summary.json").read_text())
    evaluated = json.loads(slca_fast("evaluate", run, "--json").stdout)
    assert evaluated["accuracy"] == summary["last_accuracy"]
    picture = str(next((images / "test" / "class1").iterdir()))
    line = json.loads(slca_fast("predict", run, picture, "--json", "--top-k", "2").stdout)
    assert line["path"] == picture and len(line["predictions"]) == 2
    assert slca_fast("report", run).returncode == 0
    again = slca_fast(*args, "--output", run)
    assert again.returncode == 2 and "--resume" in again.stderr and "Traceback" not in again.stderr
    repeated = slca_fast("train", str(Path(run, "config.yaml")), "--output", str(tmp_path / "repeat"))
    assert repeated.returncode == 0, repeated.stderr
    twin = json.loads((tmp_path / "repeat" / "summary.json").read_text())
    assert twin["weights_sha256"] == summary["weights_sha256"] and twin["accuracy_matrix"] == summary["accuracy_matrix"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_run_that_resumes(images, tmp_path, number) -> None:
    run = tmp_path / "run"
    args = [
        "train",
        "demo",
        *TINY_ARGS,
        "--optim.epochs",
        "400",
        "--tasks.sizes",
        "[2,2]",
        "--data.root",
        str(images),
        "--output",
        str(run),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "slca_fast", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or '"epoch"' not in (run / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    asked = time.monotonic()
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number and time.monotonic() - asked < 30
    assert "--resume" in error and "Traceback" not in error
    assert list((run / "checkpoints").glob("task-*"))


def test_check_data_and_doctor_speak_plainly(images, capsys) -> None:
    assert main(["check-data", "--data.root", str(images)]) == 0
    assert "train: 40 images of 4 classes" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert "symmetric_cross_entropy" in findings["ops"] and "torch" in findings["versions"]


def test_exported_timm_weights_give_the_same_logits(images, tmp_path, capsys) -> None:
    import timm
    import torch
    from safetensors.torch import load_file

    from slca_fast.trained import load_run

    run = tmp_path / "run"
    assert (
        main(["train", "demo", *TINY_ARGS, "--tasks.sizes", "[2,2]", "--data.root", str(images), "--output", str(run)])
        == 0
    )
    assert main(["export", str(run), "--format", "timm", "--to", str(tmp_path / "timm")]) == 0
    config = json.loads((tmp_path / "timm/config.json").read_text())
    vit = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["kwargs"])
    vit.load_state_dict(load_file(tmp_path / "timm/model.safetensors"))
    vit.norm.eps = config["final_norm_eps"]
    pixels = torch.randn(5, 3, 16, 16)
    ours = load_run(run, "cpu").scores(pixels)
    torch.testing.assert_close(vit.eval()(pixels), ours, rtol=0, atol=2e-6)
    assert main(["export", str(run), "--format", "timm", "--to", str(tmp_path / "timm")]) == 2
    assert "not empty" in capsys.readouterr().err
