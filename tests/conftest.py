"""Strict settings for all tests: two CPU devices, no silent rank promotion; one run."""

import jax
import pytest

from experiments.rendering.clips import render_dataset
from tests.command_line import train
from tests.fabricated import write_tiny_backbone
from vd.config import EventConfig
from vd.devices import prepare_jax
from vd.predict.predictor import Predictor

prepare_jax(cpu_devices=2)  # compiled programs are kept, as in every run
jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.local_device_count() == 2  # fixed from here on, whichever test comes first


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


@pytest.fixture(scope="session")
def always(trained):
    """A predictor for which every window is violent."""
    events = EventConfig(threshold=0.0, window_seconds=2.0, stride_seconds=0.5)
    return Predictor(trained[0] / "run", events=events)
