"""``slca-fast evaluate``: a run's newest finished task on its test images, again."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from slca_fast.cli.paths import user_path
from slca_fast.cli.warning import warn


def main(argv: Sequence[str]) -> int:
    """Prints accuracy over all seen classes and by task."""
    parser = argparse.ArgumentParser(prog="slca-fast evaluate", description="Test a run's newest finished task again.")
    parser.add_argument("run", type=user_path, metavar="RUN", help="run folder")
    parser.add_argument("--data.root", dest="root", help="image folder (default: the run's own)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    from slca_fast.data.stream import Stream
    from slca_fast.machine.float32 import fast_float32_products
    from slca_fast.metrics import ABSENT
    from slca_fast.runs.retest import dataset_for
    from slca_fast.runs.trained import load_run
    from slca_fast.training.evaluation import evaluate
    from slca_fast.training.features import extract_features

    model = load_run(options.run, options.device, warn)
    config = model.config
    if options.root is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=options.root))
    dataset = dataset_for(model, config.data)
    stream = Stream(dataset, model.plan, config.data, config.optim.batch_size, model.device)
    try:
        with fast_float32_products(model.device):
            images = stream.seen_test(model.num_tasks_done - 1)
            features, labels = extract_features(model.backbone, images, model.precision)
    finally:
        stream.close()
    result = evaluate(model.classifier, features, labels, model.plan)
    if options.json:
        print(
            json.dumps(
                {
                    "tasks": model.num_tasks_done,
                    "images": len(labels),
                    "accuracy": result.accuracy,
                    "top5": result.top5,
                    "per_task": result.per_task,
                }
            )
        )
    else:
        by_task = " ".join(ABSENT if value is None else f"{value:.2f}" for value in result.per_task)
        print(
            f"after task {model.num_tasks_done}: accuracy {result.accuracy:.2f}, top-5 {result.top5:.2f} "
            f"({len(labels)} images; by task: {by_task})"
        )
    return 0
