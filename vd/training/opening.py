"""What a run starts with: its data, batch size and devices."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from vd.config import Config
from vd.console import say
from vd.data.manifest import SPLITS, Video
from vd.errors import VdError
from vd.training import distributed
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
    total = (config.run.devices or 1) * processes
    if config.training.batch_size % total:
        raise VdError(
            f"--batch-size {config.training.batch_size} does not divide over {total} "
            f"devices (--devices of each of --num-processes); give a multiple of {total}, "
            "or another number of devices."
        )


def batch_and_devices(config: Config, train_clips: int) -> Opened:
    """The batch size, cut to what a small train split can fill, and the devices."""
    from vd.devices import training_devices

    processes = distributed.processes().count
    requested, size = config.run.devices, config.training.batch_size
    least = (requested or 1) * processes
    batch_size = min(size, train_clips)
    batch_size -= batch_size % least
    if not batch_size:
        raise VdError(
            f"{least} devices are more than the {train_clips} clips of the train split; "
            "give fewer by --devices or --num-processes."
        )
    if batch_size < size and distributed.is_lead():
        say(
            f"the train split has {train_clips} clips: --batch-size is cut to {batch_size}"
        )
    each = distributed.broadcast(_devices_before(config))
    return Opened(batch_size, training_devices(each, batch_size, processes))


def _devices_before(config: Config) -> int | None:
    """The devices of each process: those requested, else those of the run's beginning."""
    path = config.run.checkpoint_dir
    begun = (path / "config.json").exists() and not config.run.fresh
    if config.run.devices is not None or not begun or not distributed.is_lead():
        return config.run.devices
    import jax

    from vd.devices import prepare_jax

    before: int = read_config(path)["devices"]["count"]
    processes = distributed.processes().count
    each, rest = divmod(before, processes)
    if not rest:
        prepare_jax(each)
        if each <= jax.local_device_count():
            return each
    say(
        f"warning: the run began on {before} devices and "
        f"{processes * jax.local_device_count()} are here: the last bits of its numbers "
        "will differ"
    )
    return None
