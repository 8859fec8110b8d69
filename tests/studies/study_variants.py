"""Compare the variants of the U-Net: trained for the same time on the same store, scored on its test split.

    python tests/studies/study_variants.py shards

The original is trained on --samples. First the study measures how many samples each variant can see in the same time:
it times steps of all networks in turns, on one batch. Existing runs are resumed, so a study that was stopped continues.
"""

import argparse
import logging
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsgen.evaluation.evaluate import evaluate
from dsgen.io.atomic import write_bytes, write_json
from dsgen.io.json_files import read_json
from dsgen.parallel.devices import pick_device, tune_for_training
from dsgen.store.loader import Loader
from dsgen.training.fit import train
from dsgen.training.settings import Settings
from dsgen.training.trainer import Trainer

EPOCHS, ROUNDS = 8, 7
VARIANTS: dict[str, dict[str, Any]] = {
    "the original": {},
    "grey": {"colour": "grey"},
    "answers of half the size": {"output": "half"},
    "separate first blocks": {"blocks": "separate"},
    "SGD": {"optimizer": "sgd", "learning_rate": 0.05},
    "encoder resnet10t": {"encoder": "resnet10t"},
    "encoder regnety_002": {"encoder": "regnety_002"},
    "encoder mobilenetv4_conv_small": {"encoder": "mobilenetv4_conv_small"},
    "encoder lcnet_050": {"encoder": "lcnet_050"},
    "encoder edgenext_xx_small": {"encoder": "edgenext_xx_small"},
    "encoder tf_efficientnet_lite0": {"encoder": "tf_efficientnet_lite0"},
}
PRETRAINED = "pretrained tf_efficientnet_lite0"


def step_seconds(store: str, all_settings: dict[str, Settings], size: int) -> dict[str, float]:
    """Return the median seconds of a step of every variant, measured in turns."""
    device = pick_device("auto")
    loader = Loader(store, "train", all_settings["the original"].batch_size[0], device=device)
    batch = next(iter(loader))
    trainers = {name: Trainer(settings, loader.fields, "", device) for name, settings in all_settings.items()}
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for step in range(ROUNDS + 1):
        for name, trainer in trainers.items():
            trainer.network.train()
            started = time.perf_counter()
            trainer.step(batch, size, step, 1e-3)[0].tolist()
            if step > 0:  # the first one warms up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Train and score every variant, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--samples", type=int, default=12_000, help="for the original")
    parser.add_argument("--lite0-weights", help=f"ImageNet weights of tf_efficientnet_lite0, for a row {PRETRAINED!r}")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS), help="these, and the original")
    parser.add_argument("--work", type=Path, default=Path("bench/variants"))
    parser.add_argument("--out", type=Path, default=Path("variants.md"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    tune_for_training()
    common: dict[str, Any] = {"sizes": (arguments.size,), "batch_size": (16,), "schedule": "cosine"}
    all_settings = {
        name: Settings(**{**common, **changes})
        for name, changes in VARIANTS.items()
        if name == "the original" or name in arguments.only
    }
    if arguments.lite0_weights:
        weights = {"encoder": "tf_efficientnet_lite0", "encoder_weights": arguments.lite0_weights}
        all_settings[PRETRAINED] = Settings(**{**common, **weights})
    seconds = step_seconds(arguments.store, all_settings, arguments.size)
    title = ["network", "parameters", "ms a step", "samples", "mask IoU", "depth delta1", "SSIM"]
    lines = ["| " + " | ".join(title) + " |", "|---" * len(title) + "|"]
    for name in all_settings:
        run = arguments.work / name.replace(" ", "-")
        plan = run / "samples.json"  # what was measured before decides for a run that is there
        if not plan.is_file():
            share = seconds["the original"] / seconds[name]
            run.mkdir(parents=True, exist_ok=True)
            write_json(plan, {"epoch": round(arguments.samples * share / EPOCHS), "step": seconds[name]})
        chosen = read_json(plan)
        settings = replace(all_settings[name], epoch_samples=chosen["epoch"], validation_samples=100)
        train(arguments.store, run, settings, epochs=EPOCHS)
        result = evaluate(run, arguments.store, split="test", checkpoint="last", out=run / "test")
        scores = result.scores["scores"]["network"]
        parameters = read_json(run / "config.json")["parameters"]
        cells = [name, f"{parameters:,}", f"{chosen['step'] * 1000:.0f}", f"{chosen['epoch'] * EPOCHS:,}"]
        cells += [f"{scores[key]:.3f}" for key in ("iou", "delta1", "ssim")]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
        write_bytes(arguments.out, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
