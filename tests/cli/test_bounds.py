"""Settings beyond what a machine and float32 hold are refused in the option's words, before anything is written."""

from __future__ import annotations

import resource

import pytest
from helpers import TINY_ARGS, slca_fast, write_images

from slca_fast.cli import main
from slca_fast.cli.config_args import parse_overrides
from slca_fast.config import Config
from slca_fast.config_file import flat_hints
from slca_fast.errors import UserError

NUMBERS = [key for key, hint in flat_hints().items() if hint in (int, float, int | None, float | None)]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e300", "-1e300", "1" + 30 * "0"])
def test_no_number_of_a_run_is_infinite_or_huge(key, value) -> None:
    with pytest.raises(UserError, match=f"--{key} is "):
        parse_overrides(Config(), [f"--{key}={value}"])


@pytest.mark.parametrize(
    "args",
    [
        ("--data.max_megapixels", "inf"),
        ("--data.cache_budget_gb", "1e300"),
        ("--data.num_workers", "100000"),
        ("--data.image_size", "100000"),
        ("--data.std", "1e-320,1,1"),
        ("--data.mean", "1e308,0,0"),
        ("--runtime.num_threads", "100000"),
        ("--align.samples_per_class", "1000000000"),
        ("--align.ridge", "1e300"),
        ("--align.temperature", "1e-300"),
        ("--align.feature_scale", "1e300"),
        ("--optim.milestones", "1000000000000000000000"),
        ("--optim.lr", "1e300"),
        ("--tasks.sizes", "1,99999999999999999999"),
        ("--checkpoint.keep", "100000000000000000000000"),
    ],
)
def test_settings_beyond_the_machine_leave_no_folder(args, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "demo", *args]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"slca-fast: error: {args[0]} is ") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args, option",
    [
        pytest.param(
            ("--align.samples_per_class", "1000000", "--model.kwargs.embed_dim", "2400"),
            "--align.samples_per_class is ",
            marks=pytest.mark.slow,
        ),
        (("--model.lora.rank", "100000"), "--model.lora"),
        (("--model.kwargs.qkv_bias", "maybe"), "--model.kwargs.qkv_bias is "),
        (("--model.name", "vit_tiny_patch16_224.nosuchtag"), "--model.name vit_tiny_patch16_224.nosuchtag: "),
    ],
)
def test_what_only_data_and_model_tell_is_refused_before_the_folder_exists(
    args, option, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("slca_fast.methods.alignment.memory_bytes", lambda device: 10**9)
    images = write_images(tmp_path / "images")
    base = ["train", "demo", *TINY_ARGS, "--tasks.sizes", "2,2", "--data.root", str(images)]
    assert main([*base, "--output", str(tmp_path / "run"), *args]) == 2
    assert f"error: {option}" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_threads_whose_stacks_pass_the_limit_of_address_space_are_refused(tmp_path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))
        resource.setrlimit(resource.RLIMIT_STACK, (2**26, resource.getrlimit(resource.RLIMIT_STACK)[1]))

    said = slca_fast("train", "demo", "--runtime.num_threads", "1000", cwd=tmp_path, preexec_fn=limit)
    assert said.returncode == 2 and said.stderr.count("\n") == 1
    assert said.stderr.startswith("slca-fast: error: --runtime.num_threads is 1000: their stacks would take 62.5 GiB")
    assert list(tmp_path.iterdir()) == []
