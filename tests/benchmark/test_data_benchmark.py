"""The benchmark of the data backends runs, and its rows have the published form."""

import pytest

from slca_fast.benchmark.data import BASELINE, measure, table

KEYS = {
    *("suite", "name", "shape", "dtype", "backend", "baseline", "median_ms", "baseline_median_ms", "ratio"),
    *("ratio_min", "ratio_max", "n", "achieved", "unit", "fraction_of_peak", "peak_memory_bytes"),
}


@pytest.mark.slow
def test_rows_of_a_small_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SLCA_FAST_CACHE", str(tmp_path / "cache"))
    rows = measure(num_images=8, side=40, image_size=32, rounds=2, folder=tmp_path / "images")
    assert all(set(row) == KEYS and row["n"] == 2 and row["median_ms"] > 0 for row in rows)
    assert [row["ratio"] for row in rows if row["backend"] == BASELINE] == [1.0, 1.0]
    assert {row["backend"] for row in rows} >= {BASELINE, "Pillow", "resident cache"}
    assert "resident cache" in table(rows)
