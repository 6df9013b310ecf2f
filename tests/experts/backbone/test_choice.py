"""One value of the configuration chooses the backbone."""

import pytest
import torch
import yaml

from experts.backbone.choice import BackboneConfig
from experts.backbone.dcn import DCNv2
from experts.backbone.dhen import DHEN
from experts.backbone.gesr import GESR
from experts.backbone.plain import Plain
from hypercast.training.random import initialise_
from streaming.config import Config, dump, parse
from streaming.errors import ConfigError

KINDS = {"mlp": Plain, "dcn": DCNv2, "dhen": DHEN, "gesr": GESR}


class Holder(Config):
    backbone: BackboneConfig = Plain.Config()


@pytest.mark.parametrize("kind", KINDS)
def test_by_kind(kind: str) -> None:
    made = parse({"backbone": {"kind": kind, "hidden": [8]}}, Holder, source="here")
    assert isinstance(made.backbone, KINDS[kind].Config)
    assert made.backbone.hidden == [8]
    assert parse(yaml.safe_load(dump(made)), Holder, source="here") == made


def test_a_perceptron_where_nothing_is_said() -> None:
    assert parse({"backbone": {"hidden": [8]}}, Holder, source="here").backbone == Plain.Config(hidden=[8])
    assert parse({}, Holder, source="here").backbone == Plain.Config()


def test_a_config_of_any_kind_is_taken() -> None:
    assert Holder(backbone=DCNv2.Config()).backbone == DCNv2.Config()
    assert Holder().model_copy(update={"backbone": DHEN.Config()}).backbone == DHEN.Config()


@pytest.mark.parametrize("wrong", [{"kind": "forest"}, {"kind": "dcn", "interactions": ["dot"]}, {"crosses": 1}, 7])
def test_refuses(wrong: object) -> None:
    with pytest.raises(ConfigError, match="backbone"):
        parse({"backbone": wrong}, Holder, source="here")


def test_an_unknown_kind_is_told_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"mlp, dcn, dhen, gesr. Example: \{kind: dcn, crosses: 2\}"):
        parse({"backbone": {"kind": "forest"}}, Holder, source="here")


@pytest.mark.parametrize("kind", KINDS)
def test_all_have_one_interface(kind: str, reader, embedder, workspace) -> None:
    backbone = KINDS[kind].Config().build(embedder.shapes)
    initialise_(backbone, 0)
    parts = embedder(reader.batch(workspace.requests(3).slice(0, 9)))
    hidden = backbone(parts)
    assert hidden.shape == (len(parts.past.item_C), backbone.width)
    assert torch.isfinite(hidden).all()
    wider = backbone.Config(hidden=[100, 32]).build(embedder.shapes)
    assert sum(each.numel() for each in wider.parameters()) > sum(each.numel() for each in backbone.parameters())
    nobody = embedder(reader.batch(workspace.requests(3).slice(0, 0)))
    assert backbone(nobody).shape == (0, backbone.width)
