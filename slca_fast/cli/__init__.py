"""The command line: parse and render; no training logic. Imports of the heavy parts wait until a command needs them."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from slca_fast.errors import DataError, RankLost, UserError

# Command -> (module of slca_fast.cli with add_arguments and main, one line of help).
COMMANDS = {
    "train": ("train", "train one or several presets or YAML files"),
    "presets": ("presets", "list the named configurations"),
    "prepare": ("prepare", "bring a data set as downloaded into the image-folder layout"),
    "check-data": ("check_data", "look for everything that is wrong with an image folder"),
    "evaluate": ("evaluate", "test a run's newest finished task again"),
    "predict": ("predict", "classify image files with a run"),
    "report": ("report", "write a run's report.html, or compare several runs"),
    "export": ("export", "write a run's backbone for plain timm or PEFT"),
    "bench": ("bench", "measure ops, stages or whole runs against their baselines"),
    "doctor": ("doctor", "say what this machine can use and why not the rest"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``slca-fast`` with ``argv`` and returns its exit code: 0 done, 2 the user's input or a disk, 3 the data.

    130 stands for Ctrl-C and, with several ranks, 1 for the end of another rank.
    """
    for stream in (sys.stdout, sys.stderr):
        _take_every_name(stream)
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    try:
        return _dispatch(argv)
    except (DataError, UserError) as error:
        return _fail(str(error), 3 if isinstance(error, DataError) else 2, debug)
    except BrokenPipeError:
        # The reader of our output has gone (``| head``): nobody is left to tell.
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return _fail("interrupted", 130, debug)
    except OSError as error:
        return _fail(_disk_trouble(error), 2, debug)
    except RankLost as error:
        return _fail(str(error), 1, debug)


def _take_every_name(stream: Any) -> None:
    """Characters that the terminal's encoding lacks, or names that are no text, are written as escapes, not refused."""
    utf8 = str(getattr(stream, "encoding", "")).lower().replace("-", "") == "utf8"
    if hasattr(stream, "reconfigure") and stream.errors in ("strict", *(() if utf8 else ("surrogateescape",))):
        stream.reconfigure(errors="backslashreplace")


def _fail(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    rank = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ else ""
    print(f"slca-fast: error: {rank}{text}", file=sys.stderr, flush=True)
    return code


def _disk_trouble(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename is not None else ""
    fixes = {
        errno.ENOSPC: "; free some space, then go on with --resume",
        errno.EDQUOT: "; free some of your quota, then go on with --resume",
        errno.EIO: "; the disk is failing: copy the run folder elsewhere, then go on with --resume",
    }
    return f"{where}{error.strerror or error}{fixes.get(error.errno or 0, '')}"


def _dispatch(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="slca-fast",
        description="Continual learning with pre-trained vision transformers: SLCA and SLCA++.",
        epilog="Every command has --help. --debug shows the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (_, help_text) in COMMANDS.items():
        commands.add_parser(name, help=help_text, add_help=False)
    if not argv or argv[0] not in COMMANDS:
        parser.parse_args(argv or ["--help"])
        raise AssertionError("argparse has not ended")
    module = importlib.import_module(f"slca_fast.cli.{COMMANDS[argv[0]][0]}")
    return module.main(argv[1:])


def _version() -> str:
    from importlib.metadata import version

    return f"slca-fast {version('slca-fast')}"
