from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
import yaml

from streaming.config import dump, parse
from streaming.errors import ConfigError
from streaming.schema import DatasetConfig, engagement_schema, entity_schema, microseconds, request_schema

START = datetime(2024, 1, 1, tzinfo=UTC)
VALUES: dict[str, Any] = {
    "name": "shop",
    "description": "",
    "provenance": "",
    "licence": "",
    "surfaces": ["feed", "search"],
    "actions": ["click"],
    "tasks": [{"name": "click"}, {"name": "buy", "given": "click", "delay_seconds": 60.0}],
    "dense": ["price", "age", "rank"],
    "context": ["device"],
    "tags": ["bot"],
    "window_boundaries": [START, START + timedelta(days=1)],
}


def test_config_survives_yaml() -> None:
    config = parse(VALUES, DatasetConfig, source="test")
    assert parse(yaml.safe_load(dump(config)), DatasetConfig, source="test") == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"surfaces": []}, "surfaces"),
        ({"surfaces": ["feed", "feed"]}, "feed is repeated"),
        ({"tasks": [{"name": "buy", "given": "click"}]}, "given"),
        ({"tasks": [{"name": "buy"}, {"name": "buy"}]}, "different names"),
        ({"tasks": [{"name": "buy", "delay_seconds": -1}]}, "delay_seconds"),
        ({"window_boundaries": [START]}, "window_boundaries"),
        ({"window_boundaries": [START, START]}, "must increase"),
        ({"window_boundaries": [START.replace(tzinfo=None), START + timedelta(days=1)]}, "timezone"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(VALUES | change, DatasetConfig, source="dataset.yaml")


def test_request_schema_keeps_supervision_apart() -> None:
    schema = request_schema(parse(VALUES, DatasetConfig, source="test"), context_types={"device": pa.string()})
    assert schema.names == [
        *("request_id", "user_id", "time", "device", "tag_bot"),
        *("candidate_id", "item_id", "surface", "dense", "supervision"),
    ]
    assert schema.field("device").type == pa.string()
    assert schema.field("dense").type == pa.list_(pa.list_(pa.float32(), 3))
    assert [field.name for field in schema.field("supervision").type] == [
        *("label_click", "label_time_click", "label_buy", "label_time_buy", "weight", "stratum")
    ]


def test_other_schemas() -> None:
    config = parse(VALUES, DatasetConfig, source="test")
    assert engagement_schema(config).names == ["user_id", "time", "item_id", "surface", "action", "quantity"]
    assert entity_schema("item_id", ["brand", "size"], {"size": pa.int64()}).types == [
        pa.int64(),
        pa.string(),
        pa.int64(),
    ]


def test_microseconds_are_exact() -> None:
    assert microseconds(datetime(2017, 1, 2, 5, 0, 0, 7, tzinfo=UTC)) == 1_483_333_200_000_007
