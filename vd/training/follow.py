"""A process that does not lead: it takes its rows of each step, and does what it is told."""

from typing import NoReturn

from vd.config import Config
from vd.console import say
from vd.errors import VdError
from vd.features.backbone import find_backbone
from vd.features.store import open_store
from vd.hosts import Hosts
from vd.models.plugins import Plugins
from vd.training import run_folder
from vd.training.batches import training_batches
from vd.training.feature_set import TRAINED_SHARE, FeatureSet
from vd.training.joint import JointInterruption, make_joint_step, share_state
from vd.training.loop import begin
from vd.training.meeting import devices_of_all, look
from vd.training.optimizer import learning_rates
from vd.training.step import step_numbers


def follow(config: Config, plugins: Plugins, hosts: Hosts) -> NoReturn:
    """Train with process 0 until it ends, which ends this process.

    Raises `VdError` when this process has other settings, or sees other files.
    """
    say(f"process {hosts.index} of {hosts.count}: process 0 leads")
    devices = devices_of_all(config, hosts)
    told = hosts.hear()  # after the extraction
    look(config.run.checkpoint_dir, told, hosts)
    data = _training_set(config, plugins, hosts)
    batch_size: int = told["batch_size"]
    steps = len(data) // batch_size
    settings = config.training
    rates, numbers = learning_rates(settings, steps), step_numbers(config)
    with JointInterruption() as interruption:
        step = make_joint_step(config, devices, plugins, interruption)
        state = begin(config, data.dim, plugins).state
        state = share_state(state, hosts)
        done = int(state.step)
        batches = training_batches(
            data, settings, config.model.clip_frames, batch_size, done,
            len(devices) // hosts.count, hosts.rows(batch_size),
        )  # fmt: skip
        while (todo := hosts.hear()) is not None:  # steps that the epoch lacks
            for _ in range(todo):
                numbers = numbers._replace(learning_rate=rates[done])
                state, _ = step(state, next(batches), numbers)
                done += 1
                if interruption.came:
                    break
        hosts.wait_for_end()


def _training_set(config: Config, plugins: Plugins, hosts: Hosts) -> FeatureSet:
    """The clips that process 0 trains on, from the run folder and the cache."""
    run_dir = config.run.checkpoint_dir
    backbone = find_backbone(config.backbone)
    dim = run_folder.read_config(run_dir)["preprocessing"]["dim"]
    store = open_store(config.data.cache_dir, backbone, dim // len(backbone.streams))
    identity = {
        **run_folder.settings_identity(config),
        **plugins.identity(),
        "features": store.fingerprint,
    }
    run_folder.check_identity(run_dir, identity)
    videos = run_folder.videos_of(run_dir, config.data.dataset_path)
    train = [video for video in videos if video.split == "train"]
    lacking = [video for video in train if video.id not in store.rows]
    if lacking:
        raise VdError(
            f"--cache-dir {config.data.cache_dir.absolute()} of process {hosts.index} lacks "
            f"the features of {len(lacking)} clips that process 0 has; give all processes "
            "one cache on a shared file system."
        )
    return FeatureSet(train, store, share=TRAINED_SHARE / hosts.count)
