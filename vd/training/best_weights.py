"""weights.npz: the parameters of a run's best checkpoint, which are read without orbax."""

import hashlib
import io
from pathlib import Path

import jax
import numpy as np

from vd.errors import VdError
from vd.files import write_bytes, write_json
from vd.models.head import Params
from vd.training.run_folder import read_config

_FILE, _KEY = "weights.npz", "weights_sha256"


def write_best_weights(run_dir: Path, params: Params) -> None:
    """Write weights.npz, then its SHA-256 into config.json."""
    arrays = {
        _name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_bytes(run_dir / _FILE, content.getvalue())
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    write_json(run_dir / "config.json", read_config(run_dir) | {_KEY: digest})


def read_best_weights(run_dir: Path, like: Params) -> Params | None:
    """The parameters in the form of `like`; None when there is no such file.

    Raises `VdError` when the file is damaged, or is of a head with other parameters.
    """
    path = run_dir / _FILE
    if not path.exists():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != read_config(run_dir).get(_KEY):
        raise VdError(
            f"{path} is damaged (its checksum differs); delete it, and the best "
            "checkpoint is read instead."
        )
    with np.load(io.BytesIO(content)) as arrays:
        paths = (place for place, _ in jax.tree_util.tree_leaves_with_path(like))
        if missing := sorted(set(map(_name, paths)) - set(arrays)):
            raise VdError(
                f"{path} has no {missing[0]}, which the head has in this version of vd; use "
                "the version that trained the run, or train again with a new "
                "--checkpoint-dir."
            )
        # the view is for bfloat16, which NumPy reads back as bytes
        return jax.tree_util.tree_map_with_path(
            lambda place, leaf: arrays[_name(place)].view(leaf.dtype), like
        )


def _name(place: tuple[jax.tree_util.KeyEntry, ...]) -> str:
    return jax.tree_util.keystr(place, simple=True, separator="/")
