"""The command line as a user meets it: exit codes, one-line errors, nothing written by a refused command."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import TINY_ARGS, slca_fast, write_images

from slca_fast.cli import main
from slca_fast.cli.config_args import load_source, parse_overrides
from slca_fast.config_file import config_from_dict, config_to_dict, config_to_yaml
from slca_fast.methods.presets import DATASETS, METHODS, PRESETS


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
        (("train", "demo", "--runtime.num_threads", "0"), "--runtime.num_threads is 0: give at least 1"),
        (("train", "demo", "--runtime.num_threads", "-1"), "--runtime.num_threads is -1: give at least 1"),
        (("train", "demo", "--optim.momentum", "1"), "--optim.momentum is 1.0: give a number in [0, 1)"),
        (("train", "demo", "--align.momentum", "1.5"), "--align.momentum is 1.5: give a number in [0, 1)"),
        (("train", "demo", "--seed", "3", "--seeds", "1,2"), "--seed and --seeds exclude each other"),
        (("train", "demo", "--tasks", "x.yaml"), "unknown option --tasks"),
        (("presets", "zzz"), "no preset's name contains 'zzz'"),
        (("check-data", "a", "b"), "give one folder"),
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


@pytest.mark.parametrize("label", ["[demo]", "{demo: 1}", "7", "demi"])
def test_a_preset_key_that_names_no_preset_is_refused(capsys, tmp_path, label) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"preset: {label}\n")
    assert "preset" in refused(capsys, 2, "train", str(path))


def test_an_empty_yaml_section_changes_nothing(capsys, tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: demo\noptim:\nmodel:\n  lora:\n  kwargs:\n")
    assert main(["train", str(path), "--print-config"]) == 0
    empty = capsys.readouterr().out
    assert main(["train", "demo", "--print-config", "--output", "runs/mine-seed1993"]) == 0
    assert capsys.readouterr().out == empty


@pytest.mark.parametrize(
    "args",
    [
        ("demo", "--optim.epochs", "3", "--resume"),
        ("--optim.epochs", "3", "--resume", "demo"),
        ("--resume", "demo", "--optim.epochs=3"),
        ("--optim.epochs=3", "demo", "--resume"),
    ],
)
def test_names_may_stand_anywhere(capsys, args) -> None:
    assert main(["train", *args, "--print-config"]) == 0
    assert "epochs: 3" in capsys.readouterr().out
    assert main(["train", "--print-config", *args, "--output", "x"]) == 0


def test_lists_need_no_brackets() -> None:
    args = ["--optim.milestones", "1,2", "--tasks.sizes=2,8", "--model.lora.targets", "qkv", "--data.mean", "0,.5,1"]
    config = parse_overrides(PRESETS["demo"](), args)
    assert (config.optim.milestones, config.tasks.sizes) == ((1, 2), (2, 8))
    assert (config.model.lora.targets, config.data.mean) == (("qkv",), (0, 0.5, 1))
    args = ["--optim.milestones", "[]", "--tasks.sizes", "null", "--optim.betas", "[0.5,0.9]"]
    config = parse_overrides(config, args)
    assert (config.optim.milestones, config.tasks.sizes, config.optim.betas) == ((), None, (0.5, 0.9))


def test_arguments_of_the_model_are_changed_one_by_one_or_replaced_as_the_help_says(capsys, tmp_path) -> None:
    one = parse_overrides(PRESETS["demo"](), ["--model.kwargs.depth", "2"]).model.kwargs
    assert one == {**PRESETS["demo"]().model.kwargs, "depth": 2}
    assert parse_overrides(PRESETS["demo"](), ["--model.kwargs", "{depth: 2}"]).model.kwargs == {"depth": 2}
    path = tmp_path / "mine.yaml"
    path.write_text("preset: demo\nmodel:\n  kwargs: {depth: 2}\n")
    assert load_source(str(path)).config.model.kwargs == {"depth": 2}
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "replace all of them" in text and " CONFIG " not in text


def test_every_method_is_told_by_its_configuration() -> None:
    for name, make in PRESETS.items():
        words = ["slcapp"] if name == "demo" else [word for word in name.split("-") if word in METHODS]
        assert make().method == words[0], name


def test_a_run_repeated_from_its_configuration_keeps_name_and_method(images, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    args = [*TINY_ARGS, "--tasks.sizes", "2,2", "--data.root", str(images)]
    assert main(["train", "demo-probe", *args, "--output", "first"]) == 0
    assert main(["train", "first/config.yaml"]) == 0
    again = Path("runs/demo-probe-seed1993")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (Path("first"), again)]
    assert [(s["preset"], s["method"]) for s in summaries] == [("demo-probe", "probe")] * 2
    assert (again / "config.yaml").read_text().startswith("preset: demo-probe\n")
    assert main(["train", "first/config.yaml", "--resume"]) == 0
    assert main(["evaluate", str(again)]) == 0


def test_a_run_of_a_file_keeps_the_files_name(images, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_config.yaml").write_text("preset: demo-slca\noutput: mine\n")
    assert main(["train", "my_config.yaml", *TINY_ARGS, "--tasks.sizes", "2,2", "--data.root", str(images)]) == 0
    summary = json.loads(Path("mine/summary.json").read_text())
    assert (summary["preset"], summary["method"]) == ("my_config", "slca")
    source = load_source("mine/config.yaml")
    assert (source.name, source.of_run) == ("my_config", True)
    Path("mine").rename("moved")
    assert load_source("moved/config.yaml").of_run
    Path("config.yaml").write_text("output: elsewhere\n")
    assert not load_source("config.yaml").of_run


def test_missing_runs_start_and_finished_ones_are_shown_again_with_resume(images, tmp_path, capsys) -> None:
    args = [
        "train",
        "demo-seqft",
        "demo",
        *TINY_ARGS,
        "--tasks.sizes",
        "2,2",
        "--data.root",
        str(images),
        "--output",
        str(tmp_path / "out"),
        "--resume",
    ]
    assert main(args) == 0
    first = {path: path.read_bytes() for path in (tmp_path / "out").rglob("summary.json")}
    assert len(first) == 2
    capsys.readouterr()
    assert main(args) == 0
    assert {path: path.read_bytes() for path in first} == first
    assert "comparison" in capsys.readouterr().out


def test_interrupted_commands_end_with_130_and_one_line(capsys, monkeypatch) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("slca_fast.cli.evaluate.main", interrupted)
    assert "interrupted" in refused(capsys, 130, "evaluate", "run")


def test_more_best_classes_than_seen_are_all_seen(images, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    args = [*TINY_ARGS, "--tasks.sizes", "2,2", "--data.root", str(images), "--output", str(run)]
    assert main(["train", "demo", *args, "--checkpoint.keep", "9"]) == 0
    # As a run that has finished its first task only.
    first = next((run / "checkpoints").glob("task-001-epoch-0000-*"))
    for other in set((run / "checkpoints").glob("task-*")) - {first}:
        shutil.rmtree(other)
    capsys.readouterr()
    picture = str(next((images / "test" / "class1").iterdir()))
    assert main(["predict", str(run), picture, "--json", "--top-k", "10"]) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 2


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
                "demo-probe",
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
    assert "Probe" in text and "SLCA++" in text
    assert {str(p.parent.relative_to(output)) for p in output.rglob("summary.json")} == {
        "demo-probe/seed1",
        "demo-probe/seed2",
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
    for args in (["--data.root", str(images)], [str(images)]):
        assert main(["check-data", *args]) == 0
        assert "train: 40 images of 4 classes" in capsys.readouterr().out
    assert main(["check-data"]) == 0
    assert "checking the embedded digits" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert "symmetric_cross_entropy" in findings["ops"] and "torch" in findings["versions"]
    rows = findings["fast paths"]
    assert any(blocks in rows["transformer blocks"] for blocks in ("native products", "native passes", "timm"))
    assert "bmm (" in rows["attention"] or "sdpa (" in rows["attention"]
    assert rows["last block"].startswith("class token") and "on for CUDA" in rows["torch.compile"]


def test_exported_timm_weights_give_the_same_logits(images, tmp_path, capsys) -> None:
    import timm
    import torch
    from safetensors.torch import load_file

    from slca_fast.model.class_token import set_attention
    from slca_fast.model.lora import merge_lora
    from slca_fast.runs.trained import load_run

    run = tmp_path / "run"
    args = ["train", "demo", *TINY_ARGS, "--tasks.sizes", "2,2", "--data.root", str(images), "--output", str(run)]
    # The size of the images comes from data.image_size alone.
    assert main([*args, "--model.kwargs", "{patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2}"]) == 0
    assert main(["export", str(run), "--format", "timm", "--to", str(tmp_path / "timm")]) == 0
    config = json.loads((tmp_path / "timm/config.json").read_text())
    vit = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["kwargs"])
    vit.load_state_dict(load_file(tmp_path / "timm/model.safetensors"))
    vit.norm.eps = config["final_norm_eps"]
    assert config["kwargs"]["img_size"] == config["image_size"] == 16
    pixels = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    exported, model = vit.eval()(pixels), load_run(run, "cpu")
    same_order = merge_lora(copy.deepcopy(model.backbone.vit)).eval()
    set_attention(same_order, "sdpa")
    same = model.classifier.scores(same_order.forward_head(same_order.forward_features(pixels), pre_logits=True))
    assert torch.equal(exported, same)
    # Our own way adds in another order: LoRA beside the weight, the last block for the class token alone.
    torch.testing.assert_close(exported, model.scores(pixels), rtol=1e-6, atol=2e-6)
    assert main(["export", str(run), "--format", "timm", "--to", str(tmp_path / "timm")]) == 2
    assert "not empty" in capsys.readouterr().err
