"""Runs compared: groups over seeds, means and deviations, what is best, and what is left out."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import HOSTILE, assert_sound, make_run, printed

from slca_fast.errors import UserError
from slca_fast.report.comparison import comparison_rows
from slca_fast.report.comparison_page import compare_runs
from slca_fast.report.comparison_table import comparison_table


def _six_runs(tmp_path: Path) -> list[Path]:
    lasts = {"slca": (70.0, 72.0, 77.0), "slcapp": (80.0, 81.0, 82.0)}
    return [
        make_run(
            tmp_path / f"{method}-{seed}",
            preset=f"{method}-demo",
            method=method,
            seed=seed,
            accuracy=[95.0, 90.0, last],
        )
        for method, values in lasts.items()
        for seed, last in zip((1993, 1996, 1997), values)
    ]


def test_three_seeds_of_two_methods(tmp_path):
    runs = _six_runs(tmp_path)
    slca, slcapp = comparison_rows(runs)
    assert (slca["label"], slca["method"], slca["preset"], slca["num_runs"]) == ("SLCA", "SLCA", "slca-demo", 3)
    assert slca["seeds"] == [1993, 1996, 1997]
    # 70, 72, 77: mean 73, squared deviations 9 + 1 + 16 = 26, over n - 1 = 2 gives 13
    assert slca["last_accuracy_mean"] == pytest.approx(73.0)
    assert slca["last_accuracy_std"] == pytest.approx(math.sqrt(13))
    # Inc = (185 + last) / 3, so its deviation is a third of Last's
    assert slca["average_incremental_accuracy_mean"] == pytest.approx(86.0)
    assert slca["average_incremental_accuracy_std"] == pytest.approx(math.sqrt(13) / 3)
    # Rows [95], [89, 90.5], [last - 2, last - 0.5, ..]: drops 97 - last and 91 - last, their mean 94 - last.
    assert slca["forgetting_mean"] == pytest.approx(21.0)
    assert slca["forgetting_std"] == pytest.approx(math.sqrt(13))
    assert (slcapp["last_accuracy_mean"], slcapp["last_accuracy_std"]) == (pytest.approx(81.0), pytest.approx(1.0))
    assert (slcapp["total_seconds_mean"], slcapp["total_seconds_std"]) == (90.0, 0.0)
    table = printed(comparison_table(runs), width=80)
    assert "73.00 ± 3.61" in table and "81.00 ± 1.00" in table and "SLCA++" in table
    assert "21.0 ± 3.6" in table and "…" not in table
    path = compare_runs(runs, tmp_path / "out")
    assert path == tmp_path / "out" / "comparison.html" and path.with_suffix(".png").is_file()
    page = assert_sound(path)
    assert "73.00 ± 3.61" in page.text and "81.00 ± 1.00" in page.text and "86.00 ± 1.20" in page.text
    assert '<td class="num best">81.00 ± 1.00</td>' in page.source
    assert page.tags.count("svg") == 4


def test_one_run_has_no_deviation(tmp_path):
    (row,) = comparison_rows([make_run(tmp_path / "run")])
    assert row["last_accuracy_mean"] == 80.25 and row["last_accuracy_std"] is None


def test_a_changed_setting_makes_its_own_group_and_is_named(tmp_path):
    runs = [make_run(tmp_path / str(lr), config={"optim": {"lr": lr}}) for lr in (0.01, 0.02)]
    assert [row["label"] for row in comparison_rows(runs)] == [
        "SLCA++ (demo) [optim.lr=0.01]",
        "SLCA++ (demo) [optim.lr=0.02]",
    ]
    assert_sound(compare_runs(runs, tmp_path / "c.html"))


def test_unfinished_and_repeated_runs_do_not_count(tmp_path):
    done = make_run(tmp_path / "done")
    going = make_run(tmp_path / "going", seed=7, status="running")
    (row,) = comparison_rows([done, going, done])
    assert row["seeds"] == [1993]
    text = assert_sound(compare_runs([done, going], tmp_path / "c.html")).text
    assert "is not finished" in text
    with pytest.raises(UserError, match="none of the 1 runs is complete"):
        comparison_rows([going])
    with pytest.raises(UserError, match="no runs to compare"):
        comparison_rows([])


def test_streams_of_different_length_compare(tmp_path):
    runs = [make_run(tmp_path / "short", method="slca", sizes=(3, 3)), make_run(tmp_path / "long", sizes=(1,) * 6)]
    assert_sound(compare_runs(runs, tmp_path / "c.html"))


def _row(page: str, method: str) -> list[tuple[str, str]]:
    """The numbers of a method's row of results: class and text."""
    row = re.findall(rf"<tr><td>{re.escape(method)}</td>.*?</tr>", page)[0]
    return re.findall(r'<td class="(num[^"]*)">([^<]*)</td>', row)


def test_one_task_has_no_forgetting_and_is_not_the_best_at_it(tmp_path):
    # An older summary says 0 where nothing could be forgotten.
    joint = make_run(tmp_path / "joint", method="joint", sizes=(6,), accuracy=[97.5], forgetting=0.0)
    runs = [*_six_runs(tmp_path), joint]
    row = comparison_rows(runs)[-1]
    assert row["forgetting_mean"] is None and row["backward_transfer_std"] is None
    page = compare_runs(runs, tmp_path / "c.html").read_text()
    assert _row(page, "Joint")[2] == ("num", "–") and _row(page, "Joint")[0] == ("num best", "97.50")
    assert _row(page, "SLCA++")[2] == ("num best", "13.00 ± 1.00")
    assert _row(page, "SLCA")[2] == ("num", "21.00 ± 3.61")
    (line,) = [line for line in printed(comparison_table(runs)).splitlines() if "Joint" in line]
    assert line.split() == ["Joint", "1", "97.50", "97.50", "–", "1,234", "90"]


def test_one_group_alone_with_a_value_is_not_the_best(tmp_path):
    runs = [
        make_run(tmp_path / "joint", method="joint", sizes=(6,), accuracy=[97.5]),
        make_run(tmp_path / "slca", method="slca", accuracy=[95.0, 90.0, 70.0]),
    ]
    page = compare_runs(runs, tmp_path / "c.html").read_text()
    assert _row(page, "SLCA")[2] == ("num", "24.00") and _row(page, "Joint")[2] == ("num", "–")


def test_what_no_group_has_gets_no_chart(tmp_path):
    page = assert_sound(compare_runs([make_run(tmp_path / "joint", sizes=(6,), accuracy=[97.5])], tmp_path / "c.html"))
    assert "Last accuracy" in page.text and "Forgetting" not in page.text


def test_hostile_text_is_escaped(tmp_path):
    run = make_run(tmp_path / "run", preset=HOSTILE, method=HOSTILE, config={HOSTILE: HOSTILE})
    page = assert_sound(compare_runs([run], tmp_path / "out.html"))
    assert "<script" not in page.source and HOSTILE in page.text
    assert "[red]" in printed(comparison_table([run]))


def test_terminal_table_needs_neither_torch_nor_matplotlib():
    code = (
        "import sys, slca_fast.report.comparison_table; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_page_needs_no_torch():
    code = "import sys, slca_fast.report.comparison_page; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
