"""An expert's file: one commented YAML says what an expert of a surface is; everything that it trains stands beside it.

::

    RUN/experts.d/
      mailer_new.yaml       written by :func:`create`, edited by its owner
      mailer_new/0001/      what one training of it left (hypercast.runtime.spinup)
"""

import re
import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pydantic
import yaml

from experts import arms
from experts.model import ExpertModel
from experts.steps import SurfaceLearner
from hypercast.errors import RegistryError
from hypercast.lock import exclusive
from hypercast.pins import check_name
from hypercast.runtime.config import PlatformConfig, Seeds
from streaming import config as configuration
from streaming import files
from streaming.config import Config
from streaming.errors import ConfigError
from streaming.inputs import Inputs
from transfer.distill import AuxiliaryHead
from transfer.gain import CONTROL, TREATED

FOLDER = "experts.d"
MODES = tuple(mode for mode in arms.MODES if mode != CONTROL)
"""What an expert may take from the foundation model: the arms other than the controls."""

_WIDTH = 120


class ExpertFile(Config):
    """Contents of an expert's file.

    Attributes:
        surface: the one whose requests it ranks.
        task: whose labels judge it; it learns all tasks.
        mode: what it takes from the foundation model; the control is trained beside it.
        seeds: one expert a seed and arm; from two seeds on there is a noise floor.
        learner: batches, model and optimisers, as under `expert` in a platform file.
    """

    surface: str
    task: str
    mode: str = TREATED
    seeds: Seeds = [0, 1]
    learner: SurfaceLearner.Config = SurfaceLearner.Config()

    @pydantic.field_validator("mode")
    @classmethod
    def _known_mode(cls, mode: str) -> str:
        if mode not in MODES:
            raise ValueError(f"there is no mode '{mode}'; allowed are {', '.join(MODES)}")
        return mode

    @pydantic.field_validator("learner")
    @classmethod
    def _arms_of_the_mode(cls, learner: SurfaceLearner.Config, info: pydantic.ValidationInfo) -> SurfaceLearner.Config:
        wanted = [CONTROL, info.data.get("mode", TREATED)]
        if "arms" in learner.model_fields_set and learner.arms != wanted:
            raise ValueError(f"arms follow from the mode: here {wanted}; leave `arms` out")
        return learner.model_copy(update={"arms": wanted})

    def check(self, inputs: Inputs, *, source: Path | str) -> "ExpertFile":
        """Itself, if the data set has its surface and its task.

        Raises:
            ConfigError: it has not.
        """
        for key, value, known in (("surface", self.surface, inputs.surfaces), ("task", self.task, inputs.tasks)):
            if value not in known:
                raise ConfigError(
                    f"{source}: the data set has no {key} '{value}'; it has {', '.join(known)}. "
                    f"Example: {key}: {known[0]}"
                )
        return self


def path_of(run: Path, name: str) -> Path:
    """Where the file of an expert lies.

    Raises:
        RegistryError: the name cannot be part of a path.
    """
    return run / FOLDER / f"{check_name(name, what='expert name')}.yaml"


def names(run: Path) -> list[str]:
    """Experts that have a file, sorted."""
    return sorted(path.stem for path in (run / FOLDER).glob("*.yaml") if not path.name.startswith("."))


def read(run: Path, name: str) -> ExpertFile:
    """An expert's file.

    Raises:
        RegistryError: there is none.
        ConfigError: it does not fit :class:`ExpertFile`.
    """
    path = path_of(run, name)
    if not path.is_file():
        raise RegistryError(
            f"{path}: there is no expert '{name}'; there are: {', '.join(names(run)) or 'none'}. "
            f"Make it: hypercast expert create {name} --surface SURFACE --run {run}"
        )
    return configuration.load(path, ExpertFile)


def make(
    run: Path,
    name: str,
    *,
    platform: PlatformConfig,
    inputs: Inputs,
    surface: str,
    task: str | None = None,
    like: str | None = None,
    mode: str | None = None,
) -> ExpertFile:
    """What the file of a new expert is to say; nothing is written.

    Args:
        run: the platform's run folder.
        name: of the expert.
        platform: whose settings for experts it starts from.
        inputs: of the data set.
        surface: whose requests it ranks.
        task: whose labels judge it; None takes the data set's first, or that of ``like``.
        like: an expert whose file to start from instead.
        mode: one of :data:`MODES`; None takes :data:`~transfer.gain.TREATED`, or that of ``like``.

    Raises:
        RegistryError: a bad name, one that is taken, or ``like`` is not there.
        ConfigError: no such surface, task or mode.
    """
    path = path_of(run, name)
    if name in (*inputs.surfaces, *platform.expert_groups):
        raise RegistryError(
            f"expert name '{name}' is taken by the platform's own expert of that surface or group. "
            f"Example: '{name}_new'."
        )
    base: dict[str, Any] = {"task": inputs.tasks[0], "seeds": platform.seeds, "learner": _plain(platform.expert)}
    if like is not None:
        old = read(run, like)
        base = dict(old) | {"learner": _plain(old.learner)}
    given = {"surface": surface, "task": task, "mode": mode}
    values = base | {key: value for key, value in given.items() if value is not None}
    made = configuration.parse(values, ExpertFile, source=f"expert '{name}'").check(inputs, source=f"expert '{name}'")
    _refuse_taken(path, name, surface)
    return made


def create(run: Path, name: str, made: ExpertFile, *, backfill: int) -> Path:
    """Write the file of a new expert; returns its path.

    Args:
        run: the platform's run folder.
        name: of the expert.
        made: see :func:`make`.
        backfill: how many windows the file recommends to train it on.

    Raises:
        RegistryError: there is such an expert already.
    """
    path = path_of(run, name)
    with exclusive(path.parent):
        _refuse_taken(path, name, made.surface)
        command = f"hypercast expert train {name} --backfill {backfill}"
        head = f"# Expert '{name}'. Train it on the last {backfill} windows: {command}\n"
        head += textwrap.indent(textwrap.fill(f"Modes: {', '.join(MODES)}.", _WIDTH - 2), "# ") + "\n"
        files.write_text(path, head + commented(made))
    return path


def _refuse_taken(path: Path, name: str, surface: str) -> None:
    if path.exists():
        raise RegistryError(
            f"{path}: there is an expert '{name}' already; its file is not overwritten. Edit it, or choose another "
            f"name: hypercast expert create {name}_2 --surface {surface} --like {name} --run {path.parent.parent}"
        )


_FOLLOWS: tuple[tuple[type[Config], Collection[str]], ...] = (
    (arms.ArmsConfig, ("arms",)),
    (ExpertModel.Config, arms.FROM_ARM),
    (AuxiliaryHead.Config, ("adapter",)),
)
"""Settings, by class, that follow from an expert's mode and from its being of one surface."""


def _plain(learner: SurfaceLearner.Config) -> dict[str, Any]:
    return learner.model_dump(mode="json", exclude={"arms"})


def commented(value: Config, *, indent: int = 0) -> str:
    """YAML that reads back as an equal value; each key's comment is what its class's docstring says first of it."""
    lines = []
    for name in type(value).model_fields:
        if any(isinstance(value, kind) and name in names for kind, names in _FOLLOWS):
            continue
        each = getattr(value, name)
        comment = _comment(type(value), name)
        if isinstance(each, Config):
            shown = f"{name}:"
        else:
            plain = value.model_dump(mode="json", include={name})
            shown = yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True).strip()[1:-1]
        line = " " * indent + shown
        lines.append(f"{line}  # {textwrap.shorten(comment, max(_WIDTH - len(line) - 4, 24))}" if comment else line)
        if isinstance(each, Config):
            lines.append(commented(each, indent=indent + 2).rstrip("\n"))
    return "\n".join(lines) + "\n"


def _comment(kind: type[Config], name: str) -> str:
    """The first clause that the docstring of a class, or of one it inherits from, has on an attribute; or nothing.

    What is looked for is ``name: clause.`` or, in double backquotes, ``name``, clause; up to a full stop or semicolon.
    """
    pattern = re.compile(rf"(?:^| )(?:``{name}``,?|{name}:) (?:and ``\w+`` )*(.+?)(?:[;.](?: |$)|$)")
    for each in kind.__mro__:
        found = pattern.search(" ".join((each.__doc__ or "").split()).partition("Attributes:")[2])
        if found:
            return found[1].replace("``", "")
    return ""
