"""A data set of full size from few files: hard links give every file of a class many names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sizes import Sizes

from slca_fast.data.prepare import prepare


def made(sizes: Sizes, scratch: Path) -> Path:
    """The image folder of these sizes below ``scratch``, made once: ``{train,test}/<class>/<number>.jpg``.

    The files are JPEGs of about ``sizes.side`` px. A name more costs a decode, like a file more.
    """
    shape = f"{sizes.num_classes}x{sizes.images_per_class[0]}+{sizes.images_per_class[1]}-{sizes.side}"
    home = scratch / f"images-{shape}"
    root, done = home / "images", home / "made"
    if done.exists():
        return root
    shutil.rmtree(home, ignore_errors=True)
    num_train, num_test = sizes.files_per_class
    numbers = {"num_classes": sizes.num_classes, "num_train": num_train, "num_test": num_test, "side": sizes.side}
    prepare("synthetic", None, home / "files", **numbers)
    for split, per_class in zip(("train", "test"), sizes.images_per_class):
        for folder in sorted((home / "files" / split).iterdir()):
            names = root / split / folder.name
            names.mkdir(parents=True)
            files = sorted(folder.iterdir())
            for number in range(per_class):
                os.link(files[number % len(files)], names / f"{number:05d}.jpg")
    done.touch()
    return root
