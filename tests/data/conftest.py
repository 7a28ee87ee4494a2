"""Every test of the data has a header cache of its own."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLCA_FAST_CACHE", str(tmp_path / "cache"))
