"""Strict settings for all tests: two CPU devices, no silent rank promotion; one run."""

from pathlib import Path

import jax
import pytest

from experiments.rendering.clips import render_dataset
from tests.command_line import train
from tests.fabricated import write_tiny_backbone
from vd import experiment
from vd.config import Config, DataConfig, ModelConfig, RunConfig, TrainingConfig
from vd.devices import prepare_jax

prepare_jax(cpu_devices=2)  # compiled programs are kept, as in every run
jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.local_device_count() == 2  # fixed from here on, whichever test comes first


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A finished run on a few rendered clips, to be read only, and its settings."""
    root = tmp_path_factory.mktemp("small")
    clips = {"train": 24, "val": 12, "test": 12}
    config = Config(
        data=DataConfig(
            dataset_path=render_dataset(root / "clips", clips=clips, seed=0),
            cache_dir=root / "cache",
        ),
        model=ModelConfig(mixed_precision=False),
        training=TrainingConfig(epochs=4, batch_size=8, warmup_epochs=1),
        run=RunConfig(checkpoint_dir=root / "run"),
    )
    experiment.run(config)
    return config.run.checkpoint_dir, config


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips") / "set"
    return render_dataset(root, clips={"train": 16, "val": 8, "test": 8}, seed=3)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone") / "tiny.onnx")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, clips, backbone):
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(clips, backbone, folder)
