"""TaobaoAd: eight days of display advertisements on Taobao (Alibaba, https://tianchi.aliyun.com/dataset/56).

Two layouts, the first as the data set's page describes it, the second as https://github.com/reczoo/Datasets makes it
(``TaobaoAd_x1``)::

    raw_sample.csv    user, time_stamp, adgroup_id, pid, nonclk, clk
    ad_feature.csv    adgroup_id, cate_id, campaign_id, customer, brand, price
    user_profile.csv  userid, cms_segid, cms_group_id, ... (the last name ends in a space)
    behavior_log.csv  never read: it names categories and brands, no advertisements

    train.csv  test.csv  clk, btag_his, cate_his, brand_his, userid, ..., adgroup_id, ..., price, pid, btag

A request is what one user was shown at one second, its surface is ``pid``, the task a click, histories are clicks.

The second layout has **no times**. It is imported in the order of its rows, ``train.csv`` before ``test.csv``, one
nominal millisecond a row, in eight windows: whoever needs hours, recencies or delays must take the first layout. Its
ready-made histories (``*_his``) are not read: they end where their maker ended them, and a request's history is what
the engagement log holds before it.
"""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa

from streaming.errors import DataError
from streaming.importers.formats.layout import Derived, Layout, header, no_such_files, require_columns
from streaming.importers.mapping.columns import numbers
from streaming.importers.mapping.config import (
    AttributeConfig,
    EntityConfig,
    FilesConfig,
    LabelConfig,
    MappingConfig,
    RequestConfig,
    SurfaceConfig,
    TimeConfig,
    WindowConfig,
)
from streaming.importers.mapping.source import Block
from streaming.schema import microseconds

RAW_COLUMNS = ("user", "time_stamp", "adgroup_id", "pid", "clk")
ITEM_ATTRIBUTES = ("cate_id", "campaign_id", "customer", "brand")
USER_ATTRIBUTES = (
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
    "new_user_class_level",
)
START = datetime(2017, 5, 6, tzinfo=timezone(timedelta(hours=8)))
"""The begin of the first of the eight days, in China."""
PIECE = 1 << 20


def taobao(source: Path) -> Layout:
    """The mapping of a folder of TaobaoAd, in its own or in RecZoo's layout.

    Raises:
        DataError: it does not hold the official files.
    """
    if (source / "raw_sample.csv").is_file():
        return _raw(source)
    if (source / "train.csv").is_file() and (source / "test.csv").is_file():
        return _x1(source)
    raise no_such_files(source, "raw_sample.csv, ad_feature.csv and user_profile.csv, or train.csv and test.csv")


def _raw(source: Path) -> Layout:
    rows, ads, people = (source / name for name in ("raw_sample.csv", "ad_feature.csv", "user_profile.csv"))
    require_columns(rows, RAW_COLUMNS)
    require_columns(ads, ("adgroup_id", *ITEM_ATTRIBUTES, "price"))
    require_columns(people, ("userid",))
    return _layout(
        rows=FilesConfig(files=[rows.name]),
        user="user",
        time=TimeConfig(column="time_stamp", unit="s"),
        items=EntityConfig(files=FilesConfig(files=[ads.name]), id="adgroup_id", attributes=_items()),
        users=EntityConfig(files=FilesConfig(files=[people.name]), id="userid", attributes=_users(people)),
        windows=WindowConfig(length="1d", start=START),
        clock=True,
        derived={},
    )


def _x1(source: Path) -> Layout:
    parts = [source / "train.csv", source / "test.csv"]
    for part in parts:
        require_columns(part, ("clk", "userid", *USER_ATTRIBUTES, "adgroup_id", *ITEM_ATTRIBUTES, "price", "pid"))
    first = {"train.csv": 0, "test.csv": _lines(parts[0])}

    def nominal_time(block: Block) -> pa.Array:
        return pa.array(microseconds(START) // 1000 + first[block.file.name] + block.row)

    return _layout(
        rows=FilesConfig(files=[part.name for part in parts]),
        user="userid",
        time=TimeConfig(column="nominal_ms", unit="ms"),
        items=EntityConfig(attributes=_items()),
        users=EntityConfig(attributes=_users(parts[0])),
        windows=WindowConfig(count=8, start=START),
        clock=False,
        derived={"nominal_ms": Derived(needs=("clk",), compute=nominal_time)},
    )


def _layout(
    *,
    rows: FilesConfig,
    user: str,
    time: TimeConfig,
    items: EntityConfig,
    users: EntityConfig,
    windows: WindowConfig,
    clock: bool,
    derived: dict[str, Derived],
) -> Layout:
    mapping = MappingConfig(
        name="taobao-ad",
        description="Display advertisements on Taobao; surfaces are the places on the page.",
        provenance="Ad Display/Click Data on Taobao.com, https://tianchi.aliyun.com/dataset/56",
        licence="as its page at Tianchi says",
        rows=rows,
        user=user,
        item="adgroup_id",
        time=time,
        surface=SurfaceConfig(column="pid", prefix="pid_"),
        tasks=[LabelConfig(name="click", column="clk")],
        requests=RequestConfig(),
        clock=["hour", "weekday"] if clock else [],
        items=items,
        users=users,
        windows=windows,
    )
    return Layout(mapping=mapping, derived={**derived, "price_band": Derived(needs=("price",), compute=_price_band)})


def _items() -> dict[str, AttributeConfig]:
    return {name: AttributeConfig(column=name) for name in (*ITEM_ATTRIBUTES, "price_band")}


def _users(file: Path) -> dict[str, AttributeConfig]:
    """The official file writes ``new_user_class_level`` with a space behind it."""
    names = {name.strip(): name for name in header(file)}
    return {name: AttributeConfig(column=names[name]) for name in USER_ATTRIBUTES if name in names}


def _price_band(block: Block) -> pa.Array:
    """Prices by powers of two, as text; null where there is none."""
    price, bad = numbers(block.columns["price"], column="price")
    known = ~bad & (price > 0)
    band = np.floor(np.log2(np.where(known, price, 1.0))).astype(np.int64)
    return pa.array(band, mask=~known).cast(pa.string())


def _lines(file: Path) -> int:
    """Number of rows below the header."""
    try:
        ends, last = 0, b"\n"
        with file.open("rb") as opened:
            for piece in iter(lambda: opened.read(PIECE), b""):
                ends, last = ends + piece.count(b"\n"), piece[-1:]
        return ends - (last == b"\n")  # the header's end, or that of a last row that has none
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}). Give files that may be read.") from None
