"""What a run starts with: its data, batch size and devices."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from vd.config import Config
from vd.console import say
from vd.data.manifest import SPLITS, Video
from vd.errors import VdError
from vd.training.run_folder import read_config

if TYPE_CHECKING:
    import jax

    from vd.data.ledger import Ledger
    from vd.features.backbone import Backbone
    from vd.features.store import FeatureStore


class Data(NamedTuple):
    """A data set whose features are in the store."""

    given: list[Video]  # as the data set has them
    videos: list[Video]  # with splits
    ledger: "Ledger"
    store: "FeatureStore"
    backbone: "Backbone"

    def parts(self) -> dict[str, list[Video]]:
        """The usable clips of each split."""
        usable = self.ledger.usable()
        return {split: [v for v in usable if v.split == split] for split in SPLITS}

    def with_splits(self, videos: Sequence[Video]) -> "Data":
        """The same data with the splits of these videos, which are the usable ones."""
        splits = {video.name: video for video in videos}  # copies have one id
        entries = tuple(
            replace(entry, video=splits.get(entry.video.name, entry.video))
            for entry in self.ledger.entries
        )
        return self._replace(ledger=replace(self.ledger, entries=entries))


class Opened(NamedTuple):
    """What the open run trains with."""

    batch_size: int
    devices: "Sequence[jax.Device]"


def check_devices(config: Config, processes: int = 1) -> None:
    """Raise `VdError`, before hours of extraction, unless the batch divides over the devices."""
    batch_size, devices = config.training.batch_size, config.run.devices
    total = (devices or 1) * processes
    if batch_size % total:
        over = [f"--devices {devices}"] * (devices is not None)
        over += [f"--num-processes {processes}"] * (processes > 1)
        raise VdError(
            f"--batch-size {batch_size} does not divide over {' and '.join(over)}; give a "
            f"multiple of {total}, or another number of devices."
        )


def batch_and_devices(
    config: Config, train_clips: int, joint: Sequence["jax.Device"] = ()
) -> Opened:
    """The batch size, cut to what a small train split can fill, and the devices."""
    from vd.devices import training_devices

    asked, devices = config.training.batch_size, len(joint) or config.run.devices
    batch_size = min(asked, train_clips)
    batch_size -= batch_size % (devices or 1)
    if not batch_size:
        raise VdError(
            f"{devices} devices are more than the {train_clips} clips of the train split; "
            "give fewer by --devices or --num-processes."
        )
    if batch_size < asked:
        say(
            f"the train split has {train_clips} clips: --batch-size is cut to {batch_size}"
        )
    if joint:
        return Opened(batch_size, joint)
    return Opened(batch_size, training_devices(_devices_before(config), batch_size))


def _devices_before(config: Config) -> int | None:
    """The number of devices asked for, else the number that the run began with."""
    path = config.run.checkpoint_dir
    begun = (path / "config.json").exists() and not config.run.fresh
    if config.run.devices is not None or not begun:
        return config.run.devices
    import jax

    from vd.devices import prepare_jax, say_other_devices

    before: int = read_config(path)["devices"]["count"]
    prepare_jax(before)
    if before > len(jax.local_devices()):
        say_other_devices(before, len(jax.local_devices()))
        return None
    return before
