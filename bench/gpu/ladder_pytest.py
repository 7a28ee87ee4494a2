"""A plugin of pytest: writes every test's outcome at once, and ends pytest when a test has spoilt the CUDA device.

``SLCA_LADDER_TESTS`` names the file of its lines of JSON. After an illegal access every later call in the process
fails, so the tests that are left need another one (gpu_tests.py).
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

SPOILT = 86
"""Exit code of pytest when the device no longer answers."""


def _say(**values: Any) -> None:
    with open(os.environ["SLCA_LADDER_TESTS"], "a") as lines:
        lines.write(json.dumps(values) + "\n")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _say(cannot_collect=report.nodeid, message=str(report.longrepr)[-1000:])


def pytest_collection_finish(session: pytest.Session) -> None:
    _say(collected=[item.nodeid for item in session.items])


def pytest_runtest_logstart(nodeid: str) -> None:
    _say(began=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # A test that passed says so once, at its call; a failure or a skip may come from the set-up or the end, too.
    if report.when == "call" or report.outcome != "passed":
        message = "" if report.outcome == "passed" else str(report.longrepr)[-2000:]
        _say(test=report.nodeid, outcome=report.outcome, seconds=report.duration, message=message)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid: str) -> None:
    _say(finished=nodeid)
    import torch

    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            _say(spoilt=nodeid, message=str(error)[:500])
            pytest.exit(f"the CUDA device is spoilt since {nodeid}", returncode=SPOILT)
