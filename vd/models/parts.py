"""A user's own head and loss: what a run keeps of them, and how they come back.

A head is a subclass of `vd.models.head.Head`; a loss maps (logits_B, targets_B) to losses_B,
targets being smoothed. A run names each by its import path and the SHA-256 of the file
that defines it; what that file imports is the user's to keep.
"""

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from vd.config import Config, ModelConfig, TrainingConfig
from vd.errors import VdError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Array

    from vd.models.head import Head

Loss = Callable[["Array", "Array"], "Array"]

# as run folders name them; those of before the modules moved stay readable
_BUILT_IN = {"head": "vd.model:Detector", "loss": "vd.training.loss:focal_loss"}


class Parts(NamedTuple):
    """What a run is made of beside its settings; None is the part that vd has."""

    head: "type[Head] | None" = None
    loss: Loss | None = None

    def make_head(self, config: ModelConfig) -> "Head":
        """The head of these settings."""
        from vd.models.detector import Detector

        return (self.head or Detector)(config)

    def losses(
        self,
        logits_B: "Array | np.ndarray",
        labels_B: "Array | np.ndarray",
        config: TrainingConfig,
    ) -> "Array":
        """Loss of each clip against its smoothed target."""
        import jax.numpy as jnp

        from vd.models.losses import focal_loss, smoothed_targets

        if self.loss is None:
            return focal_loss(logits_B, labels_B, config)
        return self.loss(
            jnp.asarray(logits_B), smoothed_targets(labels_B, config.label_smoothing)
        )

    def even_logit(self, config: TrainingConfig, share: float) -> float:
        """The logit of least mean loss where a `share` of the clips is violent.

        That is what a clip gets of which nothing is known: 0 for cross-entropy of balanced
        classes, below it where the loss weighs violent clips less.
        """
        import numpy as np

        logit_C = np.linspace(-8, 8, 3201, dtype=np.float32)
        loss_C = np.zeros(len(logit_C))
        for label, weight in ((1, share), (0, 1 - share)):
            labels_C = np.full(len(logit_C), label, np.float32)
            losses_C = np.asarray(self.losses(logit_C, labels_C, config), np.float64)
            loss_C += weight * np.nan_to_num(losses_C, nan=np.inf)
        least = logit_C[loss_C <= loss_C.min() + 1e-7]  # float32's rounding
        return float(least[np.argmin(np.abs(least))])

    def check(self, config: Config, dim: int) -> None:
        """Raise `VdError` unless head and loss give a float32 a clip; nothing is computed."""
        import jax
        import jax.numpy as jnp

        head, frames = self.make_head(config.model), config.model.clip_frames
        two_BxTxD = jax.ShapeDtypeStruct((2, frames, dim), jnp.float16)
        mask_BxT = jax.ShapeDtypeStruct((2, frames), jnp.float32)
        labels_B = jax.ShapeDtypeStruct((2,), jnp.float32)
        logits_B, variables = jax.eval_shape(
            head.init_with_output, jax.random.key(0), two_BxTxD, mask_BxT
        )
        more = sorted(set(variables) - {"params"})
        if more:
            raise VdError(
                f"the head {type(head).__name__} has {more[0]} beside params; training "
                "changes parameters only, so leave them out."
            )
        losses_B = jax.eval_shape(
            lambda x_B, y_B: self.losses(x_B, y_B, config.training), labels_B, labels_B
        )
        for what, made in ((type(head), logits_B), (self.loss, losses_B)):
            if made.shape != (2,) or made.dtype != jnp.float32:
                kind = "head" if isinstance(what, type) else "loss"
                raise VdError(
                    f"the {kind} {getattr(what, '__name__', what)} gives "
                    f"{made.dtype}{list(made.shape)} for 2 clips; it must give float32[2]."
                )

    def identity(self) -> dict[str, dict[str, str | None]]:
        """Import path and source hash of each part, for a run's identity.

        Raises `VdError` for a part that could not be imported again.
        """
        self._check_kinds()
        files = self.files()
        return {
            name: {"import": _BUILT_IN[name], "sha256": None}
            if file is None
            else {
                "import": _import_path(getattr(self, name)),
                "sha256": _sha256(Path(file)),
            }
            for name, file in files.items()
        }

    def _check_kinds(self) -> None:
        """Raise `VdError` for a head that is no `Head`, and a loss that takes no two arrays."""
        from vd.models.head import Head

        if self.head and not (
            isinstance(self.head, type) and issubclass(self.head, Head)
        ):
            raise VdError(
                f"the head {self.head!r} is no subclass of vd.models.head.Head; make it one "
                "(docs/extending.md)."
            )
        try:
            if self.loss:
                inspect.signature(self.loss).bind(None, None)
        except TypeError as error:
            raise VdError(
                f"the loss {self.loss!r} cannot be called with logits and targets ({error}); "
                "give it these two arguments (docs/extending.md)."
            ) from error

    def files(self) -> dict[str, str | None]:
        """The file that defines each part, to find it where its import path fails."""
        return {
            name: None if part is None else str(_source(name, part))
            for name, part in self._asdict().items()
        }


BUILT_IN = Parts()


def import_parts(config: Mapping[str, Any]) -> Parts:
    """The parts of the run whose config.json is given.

    Raises `VdError` when a part's file is missing, has changed or cannot be imported.
    """
    made = {}
    for name in Parts._fields:
        kept = config["identity"][name]
        if kept["sha256"] is not None:
            made[name] = _import(name, kept, Path(config["part_files"][name]))
    return Parts(**made)


def _import(name: str, kept: Mapping[str, str], file: Path) -> Any:
    """One part, from its module where that is the same source, else from its file."""
    module_name, _, path = kept["import"].partition(":")
    candidates = [place for place in (_place(module_name), file) if place is not None]
    present = [place for place in candidates if place.is_file()]
    same = [place for place in present if _sha256(place) == kept["sha256"]]
    if not same:
        raise VdError(
            f"{file}, which defines the {name} {kept['import']} of this run, "
            + ("has changed since" if present else "is missing")
            + "; put back the file that the run was trained with."
        )
    try:
        return attrgetter(path)(_module(same[0], module_name, kept["sha256"]))
    except Exception as error:  # whatever a user's file raises
        raise VdError(
            f"{same[0]}, which defines the {name} {kept['import']} of this run, cannot be "
            f"imported ({type(error).__name__}: {error}); put what it needs on PYTHONPATH."
        ) from error


def _module(file: Path, name: str, sha256: str) -> ModuleType:
    """The module of `file`: one that is loaded, else by name, else from the file itself."""
    for loaded in list(sys.modules.values()):
        if getattr(loaded, "__file__", None) == str(file):
            return loaded
    if _place(name) == file:
        return importlib.import_module(name)
    alias = f"vd_part_{sha256[:16]}"  # hides no module that has the same name
    spec = importlib.util.spec_from_file_location(alias, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[alias] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise
    return module


def _sha256(file: Path) -> str:
    """SHA-256 of a source file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _place(module_name: str) -> Path | None:
    """The file that importing `module_name` would take, if any."""
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):  # a parent lacks, or a module without a spec
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def _import_path(part: Any) -> str:
    """module:name of a part; the module of a script that was started is called by its file."""
    module = part.__module__
    if module == "__main__":
        main = sys.modules[module]
        spec = main.__spec__  # of python -m
        module = spec.name if spec is not None else Path(str(main.__file__)).stem
    return f"{module}:{part.__qualname__}"


def _source(name: str, part: Any) -> Path:
    """The file that defines a part; raises `VdError` when it could not be imported again."""
    try:
        module = sys.modules[part.__module__]
        found = attrgetter(part.__qualname__)(module)
        file = Path(str(module.__file__)).absolute()
    except (AttributeError, KeyError):
        found, file = None, Path()
    if found is not part or not file.is_file():
        raise VdError(
            f"the {name} {part!r} is not a class or function at the top of a .py file, so it "
            "could not be restored; move it into one and import it from there."
        )
    return file
