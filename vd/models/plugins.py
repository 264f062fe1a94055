"""A user's own head, loss and augmentation, and how a run finds them again.

A run records the import path `package.module:Name` and the file of each.
"""

import json
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass, make_dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import tyro

from vd.config import ModelConfig
from vd.errors import VdError

if TYPE_CHECKING:
    from vd.models.head import Head

_BUILT_IN = {
    "head": "vd.models.detector:Detector",
    "loss": "vd.models.losses:focal_loss",
    "augmentation": None,
}


class Plugins(NamedTuple):
    """What a run trains with beside its settings; None is what vd has."""

    # a subclass of Head, or a partial of one with its own settings
    head: "Callable[[ModelConfig], Head] | None" = None
    # (logits_B, targets_B, named settings of training) → losses_B
    loss: Callable[..., Any] | None = None
    # (batch, a key for each clip) → batch
    augmentation: Callable[..., Any] | None = None

    def make_head(self, config: ModelConfig) -> "Head":
        """The head with these settings."""
        from vd.models.detector import Detector

        return (self.head or Detector)(config)

    def identity(self) -> dict[str, dict[str, Any]]:
        """Import path of each, and the head's own settings, for a run's identity."""
        identity: dict[str, dict[str, Any]] = {
            kind: {"import": _find(kind, plugin)[0]}
            for kind, plugin in self._asdict().items()
        }
        if self.head is not None:
            head = self.head(ModelConfig())
            own = {name: getattr(head, name) for name in own_fields(type(head))}
            identity["head"]["settings"] = json.loads(json.dumps(own))
        return identity

    def files(self) -> dict[str, str | None]:
        """The file that defines each; None is what vd has."""
        return {kind: _find(kind, plugin)[1] for kind, plugin in self._asdict().items()}


BUILT_IN = Plugins()


def recorded_plugin(values: Mapping[str, Any], kind: str) -> Any:
    """The head, loss or augmentation in a run's config.json; None is what vd has."""
    file = values["part_files"][kind]
    if file is None:
        return None
    identity = values["identity"][kind]
    path: str = identity["import"]
    folder = Path(file).parents[path.partition(":")[0].count(".")]
    plugin = import_plugin(path, f"the {kind} {path} of this run", folder)
    settings = identity.get("settings", {})
    # as JSON has no tuples, and a head must be hashable
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return partial(plugin, **own) if own else plugin


def import_plugin(path: str, what: str, folder: Path) -> Any:
    """The object at `package.module:Name`, whose package may be in `folder`."""
    sys.path.append(str(folder))
    try:
        return pkgutil.resolve_name(path)
    except Exception as error:  # whatever a user's module raises
        raise VdError(
            f"{what} cannot be imported ({type(error).__name__}: {error}); give "
            "package.module:Name, and put the folder of the package on PYTHONPATH."
        ) from error


def import_head(path: str) -> "type[Head]":
    """The class that `--head` names; raises `VdError` unless it is a head."""
    from vd.models.head import Head

    if ":" not in path:
        raise VdError(
            f"--head {path} names no class in a module; give package.module:Name, for "
            "example my_head:MyHead for the class MyHead in my_head.py."
        )
    head = import_plugin(path, f"--head {path}", Path.cwd())
    if not (isinstance(head, type) and issubclass(head, Head)):
        raise VdError(
            f"--head {path} is not a subclass of vd.models.head.Head; name such a class "
            "(docs/extending.md)."
        )
    return head


def with_head_settings(command: Any, head: "type[Head]") -> Any:
    """The command with a head's own settings as flags; `own_head` is the head with these."""
    own, hints = own_fields(head), get_type_hints(head)
    groups = filter(is_dataclass, get_type_hints(command).values())
    taken = {setting.name for group in (command, *groups) for setting in fields(group)}
    if clash := sorted(taken & own.keys()):
        raise VdError(
            f"the head {head.__name__} has a field {clash[0]}, which is the name of a "
            "setting of vd; rename it, or use self.config."
        )

    def own_head(self: Any) -> Any:
        return partial(head, **{name: getattr(self, name) for name in own})

    return make_dataclass(
        command.__name__,
        [
            (name, hints[name], tyro.MISSING if default is MISSING else default)
            for name, default in own.items()
        ],
        bases=(command,),
        namespace={"__doc__": command.__doc__, "own_head": property(own_head)},
        frozen=True,
    )


def own_fields(head: "type[Head]") -> dict[str, Any]:
    """Default of each setting that a class of heads has beside `config`."""
    from vd.models.head import Head

    common = {f.name for f in fields(Head)}
    return {f.name: f.default for f in fields(head) if f.name not in common}


def _find(kind: str, plugin: Any) -> tuple[str | None, str | None]:
    """Import path and file; raises `VdError` when it could not be imported again."""
    if plugin is None:
        return _BUILT_IN[kind], None
    if isinstance(plugin, partial):  # a head with its own settings
        plugin = plugin.func
    try:
        name, path = plugin.__module__, plugin.__qualname__
        module = sys.modules[name]
        restorable = attrgetter(path)(module) is plugin
        file = Path(str(module.__file__)).absolute()
    except (AttributeError, KeyError):
        restorable = False
    if not restorable:
        raise VdError(
            f"the {kind} {plugin!r} is not a class or function at the top of a .py file, so "
            "it could not be restored; move it into one and import it from there."
        )
    if name == "__main__":  # the script that was started, by its file or as python -m
        name = module.__spec__.name if module.__spec__ else file.stem
    return f"{name}:{path}", str(file)
