"""DomainNet: six domains of 345 classes, with a list of train and of test images each."""

from __future__ import annotations

import json
from pathlib import Path

from slca_fast.data.folder import DOMAIN_FILE
from slca_fast.data.prepare.place import (
    Job,
    Link,
    PrepareReport,
    Progress,
    class_folder,
    finish,
    safe_relative,
)
from slca_fast.data.prepare.unpack import discard_unpacked, unpacked
from slca_fast.datasets import DATASETS
from slca_fast.errors import DataError, UserError
from slca_fast.files import replace_text

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
    if isinstance(domains, str):
        domains = (domains,)
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
            jobs += _jobs(source / f"{domain}_{split}.txt", split, domain, folder, class_of_label)
    expected = None
    if check_counts:
        expected = (*(sum(PUBLISHED[d][i] for d in domains) for i in (0, 1)), DATASETS["domainnet"].num_classes)
    root.mkdir(parents=True, exist_ok=True)
    replace_text(root / DOMAIN_FILE, json.dumps(list(domains)))
    options = {"domains": list(domains)}
    report = finish("domainnet", root, jobs, link=link, expected=expected, options=options, progress=progress)
    discard_unpacked(root)
    return report


def _jobs(file: Path, split: str, domain: str, folder: Path, class_of_label: dict[int, str]) -> list[Job]:
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        raise DataError(f"no {file.name} in {file.parent}") from None
    jobs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        path, _, label = line.rpartition(" ")
        parts = safe_relative(path).split("/") if path else []
        if len(parts) != 3 or parts[0] != domain or not label.isdigit():
            raise DataError(f"{file}, line {number}: expected '{domain}/<class>/<image> <label>', found {line!r}")
        if class_of_label.setdefault(int(label), parts[1]) != parts[1]:
            raise DataError(
                f"{file}, line {number}: label {label} is {parts[1]}, elsewhere {class_of_label[int(label)]}"
            )
        jobs.append(Job(f"{split}/{class_folder(parts[1])}/{domain}/{parts[2]}", folder.joinpath(*parts)))
    return jobs
