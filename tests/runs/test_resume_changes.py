"""Promise 7: a run goes on with what it was started with; what may differ is listed and documented."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_config, write_images
from hypothesis import given
from hypothesis import strategies as st

from slca_fast.cli.config_args import known_keys
from slca_fast.config_file import config_to_dict
from slca_fast.data.index import load_dataset
from slca_fast.errors import UserError
from slca_fast.runs.resume import MAY_CHANGE, data_sha256, refuse_changes

CONFIG = tiny_config(Path("images"), Path("run"))


def changed(key: str, value: object) -> dict:
    """The configuration as a dictionary in which ``key`` has another value."""
    values = copy.deepcopy(config_to_dict(CONFIG))
    place = values
    *parents, last = key.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = value if place[last] != value else [value]
    return values


@given(
    st.sampled_from(known_keys()),
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(0, 1), st.text(max_size=3), st.just([])),
)
def test_every_changed_key_is_refused_by_name_unless_it_is_listed(key: str, value: object) -> None:
    before = changed(key, value)
    if key in MAY_CHANGE:
        refuse_changes(before, "same", CONFIG, "same")
    else:
        with pytest.raises(UserError, match=rf"^--{key} is .* but the run was started with"):
            refuse_changes(before, "same", CONFIG, "same")


@pytest.mark.parametrize("key", known_keys())
def test_no_key_is_forgotten(key: str) -> None:
    test_every_changed_key_is_refused_by_name_unless_it_is_listed.hypothesis.inner_test(key, "another")


def test_what_may_change_is_documented_and_exists() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    assert set(MAY_CHANGE) <= set(known_keys())
    assert [key for key in MAY_CHANGE if f"`{key}`" not in text] == []


def test_any_change_of_the_images_is_seen(tmp_path) -> None:
    root = write_images(tmp_path / "images")
    config = tiny_config(root, tmp_path / "run").data
    before = data_sha256(load_dataset(config))
    assert data_sha256(load_dataset(config)) == before
    victim = root / "train" / "class1" / "003.png"
    content, seen = victim.read_bytes(), {before}
    changes = {
        # The names are looked up when called, for the copy at hand.
        "renamed": lambda: victim.rename(victim.with_name("0031.png")),
        "moved": lambda: victim.rename(root / "train" / "class0" / "999.png"),
        "removed": lambda: victim.unlink(),
        "another size": lambda: victim.write_bytes(content + bytes(1)),
        "another class name": lambda: [(root / s / "class3").rename(root / s / "class4") for s in ("train", "test")],
    }
    for number, (name, change) in enumerate(changes.items()):
        root = write_images(tmp_path / str(number))
        victim = root / "train" / "class1" / "003.png"
        change()
        digest = data_sha256(load_dataset(tiny_config(root, tmp_path / "run").data))
        assert digest not in seen, name
        seen.add(digest)
    assert np.unique(list(seen)).size == len(changes) + 1
