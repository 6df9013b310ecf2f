"""A wrong configuration gives one error that says where it is, what is allowed there, and shows an example."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest

from streaming import config
from streaming.errors import ConfigError, UserError


class Engine(config.Config):
    kind: Literal["slow", "fast"] = "slow"
    threads: int = pydantic.Field(default=1, ge=1)


class Job(config.Config):
    name: str
    rate: float = 0.5
    engine: Engine = Engine()
    tags: list[str] = []


def load(tmp_path: Path, text: str) -> Job:
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load(path, Job)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    job = Job(name="größer", rate=0.1, engine=Engine(kind="fast", threads=3), tags=["a", "b"])
    assert load(tmp_path, config.dump(job)) == job


def test_defaults_and_nesting(tmp_path: Path) -> None:
    assert load(tmp_path, "name: x\nengine:\n  threads: 2\n") == Job(name="x", engine=Engine(threads=2))


@pytest.mark.parametrize(
    ("text", "key", "allowed", "example"),
    [
        ("name: x\ncolour: red\n", "'colour'", "name, rate, engine, tags", "rate: 0.5"),
        ("rate: 1.0\n", "'name'", "name, rate, engine, tags", "name: <str>"),
        ("name: x\nrate: quick\n", "'rate'", "name, rate, engine, tags", "rate: 0.5"),
        ("name: x\nengine:\n  threads: 0\n", "'engine.threads'", "kind, threads", "threads: 1"),
        ("name: x\nengine:\n  kind: medium\n", "'engine.kind'", "kind, threads", "kind: slow"),
        ("name: x\nengine:\n  colour: red\n", "'engine.colour'", "kind, threads", "kind: slow"),
        ("name: x\ntags: [a, 5]\n", "'tags.1'", "name, rate, engine, tags", "tags: []"),
    ],
)
def test_one_error_says_it_all(tmp_path: Path, text: str, key: str, allowed: str, example: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert str(tmp_path / "job.yaml") in message
    assert f"key {key}" in message
    assert f"Allowed keys here: {allowed}." in message
    assert example in message
    assert isinstance(caught.value, UserError)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__  # no traceback of the parser's


def test_allowed_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'slow' or 'fast'; got 'medium'"):
        load(tmp_path, "name: x\nengine:\n  kind: medium\n")


def test_further_errors_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(2 more after this one\)"):
        load(tmp_path, "rate: quick\ncolour: red\n")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n"])
def test_top_level_must_be_a_mapping(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"job\.yaml: the top level must be a mapping(.|\n)*name: <str>"):
        load(tmp_path, text)


def test_not_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"job\.yaml: not valid YAML: (.|\n)*line 2"):
        load(tmp_path, "name: x\n  rate: : 2\n")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read"):
        config.load(tmp_path / "absent.yaml", Job)


def test_parse_names_its_source() -> None:
    with pytest.raises(ConfigError, match=r"^--set: key 'rate'"):
        config.parse({"name": "x", "rate": "quick"}, Job, source="--set")


def test_example_of_nested_defaults() -> None:
    assert config.example(Job) == "  name: <str>\n  rate: 0.5\n  engine: {}  # all defaults\n  tags: []"


def test_immutable() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Job(name="x").rate = 2.0  # type: ignore[misc]


def test_wrong_defaults_are_refused() -> None:
    class Wrong(config.Config):
        threads: int = pydantic.Field(default=0, ge=1)

    with pytest.raises(pydantic.ValidationError):
        Wrong()


class Wait(config.Config):
    kind: Literal["wait"] = "wait"
    patience: int = 1


class Guess(config.Config):
    kind: Literal["guess"] = "guess"
    wildness: int = 1


class Shop(config.Config):
    jobs: list[Job] = []
    policies: dict[str, Annotated[Wait | Guess, pydantic.Field(discriminator="kind")]] = {}
    either: Wait | Guess | None = None
    engine: Engine | None = None


@pytest.mark.parametrize(
    ("values", "where", "owner"),
    [
        ({"jobs": [{"name": "a"}, {"name": "b", "wrong": 1}]}, "jobs.1.wrong", Job),
        ({"policies": {"buy": {"kind": "guess", "wrong": 1}}}, "policies.buy.guess.wrong", Guess),
        ({"policies": {"buy": {"kind": "never"}}}, "policies.buy", Shop),
        ({"either": {"kind": "wait", "wrong": 1}}, "either.Wait.wrong", Wait),
        ({"engine": {"wrong": 1}}, "engine.wrong", Engine),
    ],
)
def test_keys_are_those_allowed_at_the_place(values: dict[str, Any], where: str, owner: type[config.Config]) -> None:
    with pytest.raises(ConfigError) as raised:
        config.parse(values, Shop, source="shop.yaml")
    said = str(raised.value)
    assert f"key '{where}'" in said
    assert f"Allowed keys here: {', '.join(owner.model_fields)}." in said


def test_a_key_that_is_given_twice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)job\.yaml: not valid YAML: the key 'engine' is there twice.*line 2"):
        load(tmp_path, "name: x\nengine: {threads: 2}\nrate: 0.1\nengine: {kind: fast}\n")
    assert load(tmp_path, "name: &n x\ntags: [name, name, *n]\n").tags == ["name", "name", "x"]


def test_text_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes("name: größer\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"job\.yaml: not UTF-8 .*Save it as UTF-8"):
        config.load(path, Job)
