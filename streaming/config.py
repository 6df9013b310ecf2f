"""Typed configuration: YAML in, a frozen ``Config`` out, one clear error otherwise.

A component nests its own ``Config`` and is built from it::

    class Trainer:
        class Config(config.Config):
            learning_rate: float = 1e-3

            def build(self) -> "Trainer":
                return Trainer(config=self)
"""

from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import pydantic
import yaml

from streaming.errors import ConfigError


class Config(pydantic.BaseModel):
    """Base of every configuration: keyword-only, immutable, unknown keys refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, validate_default=True)


ConfigT = TypeVar("ConfigT", bound=Config)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is there twice", key.start_mark
                )
        return super().construct_mapping(node, deep=deep)


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
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8.") from None
    try:
        values = yaml.load(text, _Loader)
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
    owner, place = kind, kind
    for part in location[:-1]:
        place = _only(_inside(place, part))
        if _is_config(place):
            owner = place
    return owner


def _inside(annotation: Any, part: int | str) -> Any:
    """The type of what ``part`` leads to in a value of a type; None where that is unknown.

    A part of pydantic's location is a key, an index, or which of several types the value was taken for: its tag.
    """
    if get_origin(annotation) is Annotated:
        return _inside(get_args(annotation)[0], part)
    if _is_config(annotation):
        field = annotation.model_fields.get(str(part))
        return field.annotation if field else None
    members = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        tagged = [member for member in members if _is_config(member) and part in _tags(member)]
        return next(iter(tagged), None) or next(filter(None, (_inside(member, part) for member in members)), None)
    return members[-1] if members else None


def _only(annotation: Any) -> Any:
    """Of an optional Config, the Config."""
    configs = [member for member in get_args(annotation) if _is_config(member)]
    return configs[0] if get_origin(annotation) in (Union, UnionType) and len(configs) == 1 else annotation


def _tags(kind: type[Config]) -> set[Any]:
    literals = (field.annotation for field in kind.model_fields.values() if get_origin(field.annotation) is Literal)
    return {kind.__name__, *(value for literal in literals for value in get_args(literal))}


def _is_config(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Config)
