"""Settings as text: a YAML file, an option and a run's config.yaml mean what they say."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from slca_fast.cli.config_args import load_source, parse_overrides
from slca_fast.config import Config, DataConfig, ModelConfig
from slca_fast.config_file import config_from_dict, config_to_yaml, parse_yaml
from slca_fast.errors import UserError
from slca_fast.methods.presets import PRESETS


def file_of(folder: Path, text: str) -> str:
    (folder / "mine.yaml").write_text(text)
    return str(folder / "mine.yaml")


@pytest.mark.parametrize(
    "text, line, key",
    [
        ("preset: demo\noptim:\n  lr: 0.5\noptim:\n  epochs: 3\n", 4, "optim"),
        ("optim:\n  lr: 0.5\n  lr: 0.5\n", 3, "optim.lr"),
        ("model:\n  kwargs: {depth: 2, depth: 3}\n", 2, "model.kwargs.depth"),
        ('seed: 1\n"seed": 2\n', 2, "seed"),
        ("model:\n  kwargs: {x: [{a: 1, a: 2}]}\n", 2, "model.kwargs.x.a"),
    ],
)
def test_a_key_given_twice_is_refused_with_its_name_and_line(tmp_path, text, line, key) -> None:
    with pytest.raises(UserError, match=rf"mine.yaml, line {line}: {key} stands in line \d+ already"):
        load_source(file_of(tmp_path, text))


def test_a_merged_mapping_may_be_overridden(tmp_path) -> None:
    text = "optim: &base {lr: 0.5, epochs: 7}\nalign:\n  <<: {lr: 0.25}\n  epochs: 3\n"
    config = load_source(file_of(tmp_path, text)).config
    assert (config.optim.lr, config.align.lr, config.align.epochs) == (0.5, 0.25, 3)


def test_words_stay_words_where_a_key_holds_words(tmp_path) -> None:
    text = (
        "preset: demo\noutput: no\ndata: {cache: off, root: 007}\nmodel: {checkpoint: 2024-01-01, kwargs: {a: off}}\n"
    )
    config = load_source(file_of(tmp_path, text)).config
    assert (config.output, config.data.cache, config.data.root) == ("no", "off", "007")
    assert config.model.checkpoint == "2024-01-01" and config.model.kwargs == {"a": False}
    assert load_source(file_of(tmp_path, "runtime: {compile: off}\noutput: null\n")).config.runtime.compile is False


@pytest.mark.parametrize("word", ["#recycle", "off", "1e5", "a: b", "[x", "~x", "{}", "'q'", "None", "- x", "true"])
def test_a_word_on_the_command_line_is_taken_literally(word) -> None:
    for args in (["--data.root", word], [f"--data.root={word}"]):
        assert parse_overrides(Config(), args).data.root == word
    assert parse_overrides(Config(), ["--data.cache", "off"]).data.cache == "off"
    assert parse_overrides(Config(data=DataConfig(root="x")), ["--data.root", "null"]).data.root is None


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=12).filter(lambda t: "\0" not in t), st.text(max_size=8).filter(lambda t: "\0" not in t))
def test_a_written_configuration_reads_back(root, word) -> None:
    demo = PRESETS["demo"]()
    config = replace(
        demo, data=DataConfig(root=root, cache="off"), model=ModelConfig(kwargs={"x": [word, "1e3", "no"]})
    )
    values = parse_yaml(config_to_yaml(config, "off"), "text", Config)
    assert values.pop("preset") == "off" and config_from_dict(values) == config


@pytest.mark.parametrize(
    "args, said",
    [
        (["--data.root", ""], "--data.root is empty"),
        (["--optim.epochs", "2.5"], "--optim.epochs is 2.5: give a whole number"),
        (["--optim.epochs", "true"], "--optim.epochs is True: give a whole number"),
        (["--optim.lr", "fast"], "--optim.lr is 'fast': give a number"),
        (["--runtime.compile", "1"], "--runtime.compile is 1: give true or false"),
        (["--data.cache", "of"], "give one of auto, gpu, host, off; did you mean off?"),
        (["--data.mean", "0,1"], "give 3 values"),
        (["--optim.milestones", "1,x"], "--optim.milestones is 'x': give a whole number"),
        (["--optim.lr", "[1"], "--optim.lr [1 is not valid YAML"),
        (["--optim.lr"], "--optim.lr: give a value"),
        (["--model.kwargs", "3"], "give a mapping"),
        (["--model.kwargs.x", "2024-01-01"], "--model.kwargs.x is"),
    ],
)
def test_a_value_of_another_kind_is_refused_in_the_options_words(args, said) -> None:
    with pytest.raises(UserError) as refusal:
        parse_overrides(Config(), args)
    assert said in str(refusal.value)


def test_arguments_are_data_that_nothing_imports(tmp_path, monkeypatch) -> None:
    (tmp_path / "acting.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    given = {"class_path": "acting.C", "init_args": {"a": 1}}
    for key, read in (("model", lambda c: c.model.kwargs), ("method_settings", lambda c: c.method_settings)):
        values = {"x": given}
        text = yaml.safe_dump({key: {"kwargs": values} if key == "model" else values})
        assert read(load_source(file_of(tmp_path, text)).config) == values
    assert parse_overrides(Config(), ["--model.kwargs.x", "{class_path: acting.C}"]).model.kwargs
    assert "acting" not in sys.modules


def test_aliases_and_depth_without_end_are_refused_at_once(tmp_path) -> None:
    for link in ("{k}: &{k} [*{b}, *{b}, *{b}]", "{k}: &{k}\n      <<: [*{b}, *{b}, *{b}]"):
        lines = ["a0: &a0 {z: 1}", *(link.format(k=f"a{i}", b=f"a{i - 1}") for i in range(1, 40))]
        text = "model:\n  kwargs:\n" + "".join(f"    {line}\n" for line in lines)
        with pytest.raises(UserError, match="holds more than 10000 values"):
            load_source(file_of(tmp_path, text))
    for text in ("[" * 5000, "model:\n  kwargs: &k\n    a: *k\n", "!!timestamp x", "!!bool x", "{[1]: 2}"):
        with pytest.raises(UserError):
            load_source(file_of(tmp_path, text))


def test_a_value_that_no_line_can_show_is_refused_in_one() -> None:
    with pytest.raises(UserError, match="--seed ") as refusal:
        parse_overrides(Config(), [f"--seed=\n{chr(0x1F)}"])
    assert str(refusal.value).isprintable()
