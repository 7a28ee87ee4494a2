"""DomainNet: six domains of 345 classes, with a list of train and of test images each."""

from __future__ import annotations

import re
from pathlib import Path

from slca_fast.data.prepare.place import Link, PrepareReport, Progress, finish
from slca_fast.data.prepare.sound import Job, class_folders, safe_relative
from slca_fast.data.prepare.tables import read_lines
from slca_fast.data.prepare.unpack import unpacked
from slca_fast.datasets import DATASETS
from slca_fast.errors import DataError, UserError

DOMAINS = DATASETS["domainnet"].domains
PUBLISHED = {
    "real": (120_906, 52_041),
    "quickdraw": (120_750, 51_750),
    "painting": (50_416, 21_850),
    "sketch": (48_212, 20_916),
    "infograph": (36_023, 15_582),
    "clipart": (33_525, 14_604),
}
"""Lines of the cleaned lists, (train, test)."""


def prepare_domainnet(
    source: Path,
    root: Path,
    *,
    domains: tuple[str, ...] = DOMAINS,
    link: Link = "hard",
    check_counts: bool = True,
    progress: Progress | None = None,
) -> PrepareReport:
    """``source``: a folder with <domain>_train.txt, <domain>_test.txt and <domain>/ or <domain>.zip.

    Writes <root>/{train,test}/<class>/<domain>/<image> and domains.json, the domains in task order; one domain
    (e.g. sketch) is an ordinary class-incremental data set.
    """
    domains = (domains,) if isinstance(domains, str) else tuple(domains)
    unknown = [name for name in domains if name not in DOMAINS]
    if unknown or len(set(domains)) < len(domains) or not domains:
        raise UserError(f"domains are {list(domains)}: give some of {', '.join(DOMAINS)}, each once")
    jobs: list[Job] = []
    class_of_label: dict[int, str] = {}
    for domain in domains:
        folder = source
        if not (source / domain).is_dir():
            if not (source / f"{domain}.zip").exists():
                raise DataError(f"neither {domain}/ nor {domain}.zip in {source}")
            folder = unpacked(source / f"{domain}.zip", root)
        for split in ("train", "test"):
            file = source / f"{domain}_{split}.txt"
            jobs += _jobs(file, split, domain, folder, class_of_label)
            class_folders(class_of_label.values(), file)
    expected = None
    if check_counts:
        num_train, num_test = (sum(PUBLISHED[d][i] for d in domains) for i in (0, 1))
        expected = num_train, num_test, DATASETS["domainnet"].num_classes
    return finish(
        "domainnet",
        root,
        jobs,
        source=source,
        link=link,
        expected=expected,
        options={"domains": list(domains)},
        domains=domains,
        progress=progress,
    )


def _jobs(file: Path, split: str, domain: str, folder: Path, class_of_label: dict[int, str]) -> list[Job]:
    jobs = []
    for number, line in read_lines(file):
        path, _, label = line.rpartition(" ")
        parts = safe_relative(path).split("/") if path else []
        if len(parts) != 3 or parts[0] != domain or not re.fullmatch(r"[0-9]{1,6}", label):
            expected = f"expected '{domain}/<class>/<image> <label>'"
            raise DataError(f"{file}, line {number}: {expected}, found {line[:200]!r}")
        known = class_of_label.setdefault(int(label), parts[1])
        if known != parts[1]:
            raise DataError(f"{file}, line {number}: label {label} is {parts[1][:100]}, elsewhere {known[:100]}")
        jobs.append(Job(f"{split}/{parts[1]}/{domain}/{parts[2]}", folder.joinpath(*parts)))
    return jobs
