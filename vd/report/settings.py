"""Settings of a run told: what differs from the defaults, and the command that repeats it."""

import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from vd.config import Config, DataConfig, to_json

_ALWAYS = "dataset_path", "cache_dir", "checkpoint_dir"
_OF_ONE_START = (  # how a run was started, which its repetition does not need
    "fresh", "profile", "resplit", "retry_quarantined", "coordinator_address",
    "num_processes", "process_id",
)  # fmt: skip
_LINE = " \\\n    "  # a shell reads on


class Setting(NamedTuple):
    """One setting of a run, and the default of `vd train`; paths have none."""

    group: str
    name: str
    value: Any
    default: Any

    @property
    def flag(self) -> str:
        """Its flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def differs(self) -> bool:
        """Whether the run was not trained with the default."""
        return self.name not in _ALWAYS and bool(self.value != self.default)


def all_settings(described: Mapping[str, Any]) -> list[Setting]:
    """Every setting in a config.json, in the order of `vd.config`."""
    defaults = Config(data=DataConfig(dataset_path=Path()))
    made = []
    for group in fields(Config):
        usual = to_json(getattr(defaults, group.name))
        for name, value in described["settings"][group.name].items():
            default = None if name in _ALWAYS else usual[name]
            made.append(Setting(group.name, name, value, default))
    return made


def command(described: Mapping[str, Any]) -> str | None:
    """The `vd train` command that gives this run again; None with a user's own plug-ins."""
    if any(described["part_files"].values()):
        return None
    return _LINE.join(["vd train", *_flags(described, _ALWAYS)])


def crossval_command(
    described: Mapping[str, Any], values: Mapping[str, Any], folder: str
) -> str:
    """The `vd crossval` command; `described` is the config.json of any member."""
    seeds = " ".join(str(seed) for seed in values["seeds"])
    flags = _flags(described, ("dataset_path", "cache_dir"), without=("seed",))
    where = f"--checkpoint-dir {shlex.quote(folder)}"
    last = f"--folds {values['folds']} --seeds {seeds}"
    if others := values.get("cross_datasets"):
        last += f" --cross-dataset {shlex.join(others)}"
    return _LINE.join(["vd crossval", *flags, where, last])


def _flags(
    described: Mapping[str, Any], always: tuple[str, ...], without: tuple[str, ...] = ()
) -> list[str]:
    """The flags that differ from the defaults, those of `always` first, as a shell has them."""
    settings = all_settings(described)
    places = [s for s in settings if s.name in always]
    others = [
        s
        for s in settings
        if s.differs and s.name not in _OF_ONE_START and s.name not in without
    ]
    return [_flag(setting) for setting in [*places, *others]]


def _flag(setting: Setting) -> str:
    """A setting as words of a shell."""
    if isinstance(setting.value, bool):
        return setting.flag if setting.value else f"--no-{setting.flag[2:]}"
    return f"{setting.flag} {shlex.quote(str(setting.value))}"
