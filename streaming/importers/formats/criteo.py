"""Criteo's click logs: a label, 13 numbers and 26 categories a row, tabs between them, no header line.

Layouts, as https://ailab.criteo.com/download-criteo-1tb-click-logs-dataset and the Display Advertising Challenge
describe them::

    train.txt               seven days in chronological order (Challenge, 2014)
    day_0 ... day_23[.gz]   one file a day, each in chronological order (1TB Click Logs)

**What these logs cannot give.** They name no user, no advertisement and no time. There are no histories, so a
foundation model has no sequence to learn from and nothing to transfer; there are no surfaces and no requests of several
candidates. An import is good for measuring readers, tables and experts on wide categorical rows, and for nothing that
this platform is about. What it makes of a row:

- a request of its own, by a **user of its own**: nobody's past is mixed with anybody's, intervals over users are
  intervals over rows, and memory grows with the rows. The only item is ``0``, the only surface ``display``;
- its time is **nominal**: in order, 100 microseconds a row from the begin of its file's day. ``train.txt`` does not say
  where a day ends: seven windows of equally many rows;
- the numbers are dense features, sign(x) log(1 + abs(x)), -1 for a missing one; the categories are context. Clicks were
  sampled at another, unknown rate than the rest: the rate of clicks is that of the sample, and no weight mends it.
"""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from streaming.errors import DataError
from streaming.importers.formats.layout import Derived, Layout, no_such_files
from streaming.importers.mapping.config import (
    AttributeConfig,
    CsvConfig,
    DenseConfig,
    FilesConfig,
    LabelConfig,
    MappingConfig,
    SurfaceConfig,
    TimeConfig,
    WindowConfig,
)
from streaming.importers.mapping.source import Block

NUMBERS = [f"I{index}" for index in range(1, 14)]
CATEGORIES = [f"C{index}" for index in range(1, 27)]
START_US = 1_400_000_000_000_000 // 86_400_000_000 * 86_400_000_000  # midnight; the logs do not say of which day
DAY_US = 86_400_000_000
ROW_US = 100
MOST_ROWS = DAY_US // ROW_US  # of one day


def criteo(source: Path) -> Layout:
    """The mapping of a folder of Criteo's logs.

    Raises:
        DataError: it does not hold the official files.
    """
    found = (re.fullmatch(r"day_(\d{1,3})(\.gz)?", file.name) for file in source.glob("day_*"))
    days = {int(day[1]): day[0] for day in found if day}
    if days:
        starts = {days[day]: START_US + day * DAY_US for day in sorted(days)}
        windows = WindowConfig(length="1d")
    elif (source / "train.txt").is_file():
        starts = {"train.txt": START_US}
        windows = WindowConfig(count=7)
    else:
        raise no_such_files(source, "train.txt, or day_0 to day_23 (packed or not)")
    number = {name: index for index, name in enumerate(starts)}

    def nominal_time(block: Block) -> pa.Array:
        if days and block.row.max(initial=0) >= MOST_ROWS:
            raise DataError(f"{block.file}: more than {MOST_ROWS} rows in a day. Split the file, or leave out its end.")
        return pa.array(starts[block.file.name] + block.row * ROW_US)

    def row(block: Block) -> pa.Array:
        return pa.array(number[block.file.name] * 10**12 + block.row)

    mapping = MappingConfig(
        name="criteo",
        description="Display advertisements without users, items or times; see streaming.importers.formats.criteo.",
        provenance="Criteo Display Advertising Challenge or 1TB Click Logs, https://ailab.criteo.com",
        licence="CC BY-NC-SA 4.0 (1TB Click Logs); the Challenge's own terms for train.txt",
        rows=FilesConfig(
            files=list(starts),
            format="csv",
            csv=CsvConfig(delimiter="\t", columns=["label", *NUMBERS, *CATEGORIES], quote=None, null_values=[""]),
        ),
        user="row",
        item="advertisement",
        time=TimeConfig(column="nominal_us", unit="us"),
        surface=SurfaceConfig(constant="display"),
        tasks=[LabelConfig(name="click", column="label")],
        dense={name: DenseConfig(column=f"{name}_filled", transform="log1p") for name in NUMBERS},
        context={name: AttributeConfig(column=name) for name in CATEGORIES},
        clock=[],
        windows=windows,
    )
    derived = {f"{name}_filled": _filled(name) for name in NUMBERS}
    derived["nominal_us"] = Derived(needs=("label",), compute=nominal_time)
    derived["row"] = Derived(needs=("label",), compute=row)
    derived["advertisement"] = Derived(needs=("label",), compute=lambda block: pa.array(block.row * 0))
    return Layout(mapping=mapping, derived=derived)


def _filled(column: str) -> Derived:
    """A column of numbers with -1 where there is none."""
    return Derived(needs=(column,), compute=lambda block: pc.fill_null(block.columns[column], "-1"))
