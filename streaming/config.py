"""Typed configuration: YAML in, a frozen ``Config`` out, one clear error otherwise.

A component nests its own ``Config`` and is built from it::

    class Trainer:
        class Config(config.Config):
            learning_rate: float = 1e-3

            def build(self) -> "Trainer":
                return Trainer(config=self)
"""

from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from streaming.errors import ConfigError


class Config(pydantic.BaseModel):
    """Base of every configuration: keyword-only, immutable, unknown keys refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, validate_default=True)


ConfigT = TypeVar("ConfigT", bound=Config)


def load(path: Path, kind: type[ConfigT]) -> ConfigT:
    """Read a YAML file into ``kind``.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit; the message names the file, the path of the
            key, what is allowed there and an example.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Give the path of a YAML file.") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the top level must be a mapping of keys to values, for example\n{example(kind)}")
    return parse(values, kind, source=str(path))


def parse(values: dict[str, Any], kind: type[ConfigT], *, source: str) -> ConfigT:
    """Validate ``values`` as ``kind``; ``source`` is what an error calls the place they came from.

    Raises:
        ConfigError: see :func:`load`.
    """
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "(top level)"
        owner = _owner(kind, first["loc"])
        more = f" ({error.error_count() - 1} more after this one)" if error.error_count() > 1 else ""
        raise ConfigError(
            f"{source}: key '{where}': {first['msg']}; got {first['input']!r}{more}.\n"
            f"Allowed keys here: {', '.join(owner.model_fields)}.\nExample:\n{example(owner)}"
        ) from None


def dump(value: Config) -> str:
    """The YAML text that :func:`load` reads back as an equal value."""
    return yaml.safe_dump(value.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def example(kind: type[Config]) -> str:
    """A short YAML example of ``kind``: defaults where there are any, the type's name where not."""
    lines = []
    for name, field in kind.model_fields.items():
        if field.is_required():
            shown = f"<{getattr(field.annotation, '__name__', field.annotation)}>"
        else:
            default = field.get_default(call_default_factory=True)
            if isinstance(default, Config):
                shown = "{}  # all defaults"
            else:
                shown = yaml.safe_dump(default, default_flow_style=True).replace("\n...", "").strip()
        lines.append(f"  {name}: {shown}")
    return "\n".join(lines)


def _owner(kind: type[Config], location: tuple[int | str, ...]) -> type[Config]:
    """The innermost Config class on the way to ``location``: the one whose keys the user got wrong."""
    owner = kind
    for part in location[:-1]:
        field = owner.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, Config)):
            break
        owner = annotation
    return owner
