"""KuaiRand: a month of impressions of a video app with twelve feedback signals (Gao et al., CIKM 2022, CC BY-SA 4.0).

Layout of KuaiRand-Pure, -1K and -27K, as https://kuairand.com describes it (in the folder itself or in its ``data/``)::

    log_standard_*.csv          impressions of the app's own policies
    log_random_*.csv            impressions of videos drawn at random
    user_features_*.csv         attributes of users, as of an unknown time
    video_features_basic_*.csv  attributes of videos
    video_features_statistic_*.csv  never read: averages over the whole month, which no request of it could know

A row is one impression: a request is what one user was shown at one time, its surface is ``tab``. Eight signals are
tasks as they stand; the two stay times and the play time are tasks above a threshold; the duration was known before,
a dense feature. A signal is known once playing and staying have ended. ``visible_status`` is as of the publication of
the data and therefore not read.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from streaming.importers.formats.layout import Derived, Layout, no_such_files, require_columns
from streaming.importers.mapping.columns import numbers
from streaming.importers.mapping.config import (
    AttributeConfig,
    DenseConfig,
    EngagementConfig,
    EntityConfig,
    FilesConfig,
    LabelConfig,
    MappingConfig,
    SurfaceConfig,
    TimeConfig,
    WindowConfig,
)
from streaming.importers.mapping.source import Block

LOG_COLUMNS = (
    "user_id",
    "video_id",
    "date",
    "hourmin",
    "time_ms",
    "is_click",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "long_view",
    "play_time_ms",
    "duration_ms",
    "profile_stay_time",
    "comment_stay_time",
    "is_profile_enter",
    "is_rand",
    "tab",
)
TASKS = {
    "click": "is_click",
    "long_view": "long_view",
    "like": "is_like",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "hate": "is_hate",
    "profile_enter": "is_profile_enter",
}
THRESHOLDS = {"played_3s": ("play_time_ms", 3000.0), "profile_stay": ("profile_stay_time", 1.0)}
THRESHOLDS |= {"comment_stay": ("comment_stay_time", 1.0)}
SPENT = ("play_time_ms", "profile_stay_time", "comment_stay_time")  # milliseconds
LONGEST = 3600.0  # seconds after which every signal counts as known
USER_ATTRIBUTES = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{index}" for index in range(18)),
)


def kuairand(source: Path) -> Layout:
    """The mapping of a folder of KuaiRand.

    Raises:
        DataError: it does not hold the official files.
    """
    folder = source / "data" if (source / "data").is_dir() else source
    logs = [*sorted(folder.glob("log_standard_*.csv")), *sorted(folder.glob("log_random_*.csv"))]
    if not logs:
        raise no_such_files(source, "log_standard_*.csv, user_features_*.csv and video_features_basic_*.csv")
    for log in logs:
        require_columns(log, LOG_COLUMNS)
    known = TimeConfig(column="known_ms", unit="ms")
    signals = [LabelConfig(name=name, column=column) for name, column in TASKS.items()]
    signals += [LabelConfig(name=name, column=of, at_least=least) for name, (of, least) in THRESHOLDS.items()]
    mapping = MappingConfig(
        name="kuairand",
        description="Impressions of a video app, with feedback; surfaces are the app's tabs.",
        provenance="KuaiRand, https://kuairand.com; Gao et al., CIKM 2022",
        licence="CC BY-SA 4.0",
        rows=_files(source, logs),
        user="user_id",
        item="video_id",
        time=TimeConfig(column="time_ms", unit="ms"),
        surface=SurfaceConfig(column="tab", prefix="tab_"),
        tasks=[task.model_copy(update={"known_at": known, "delay_seconds": LONGEST}) for task in signals],
        engagements=[EngagementConfig(action=name, task=name) for name in TASKS],
        dense={"duration": DenseConfig(column="duration_ms", transform="log1p")},
        as_of_features=True,
        context={"is_rand": AttributeConfig(column="is_rand")},
        items=_videos(source, folder),
        users=_users(source, folder),
        windows=WindowConfig(length="1d"),
    )
    return Layout(mapping=mapping, derived={"known_ms": Derived(needs=("time_ms", *SPENT), compute=_known)})


def _videos(source: Path, folder: Path) -> EntityConfig:
    files = sorted(folder.glob("video_features_basic_*.csv"))
    if not files:
        raise no_such_files(folder, "video_features_basic_*.csv")
    plain = ("video_type", "upload_type", "music_type", "author_id", "music_id")
    attributes = {"tag": AttributeConfig(column="tag", first_of=",")}
    attributes |= {name: AttributeConfig(column=name) for name in plain}
    return EntityConfig(files=_files(source, files), id="video_id", attributes=attributes)


def _users(source: Path, folder: Path) -> EntityConfig:
    files = sorted(folder.glob("user_features_*.csv"))
    if not files:
        raise no_such_files(folder, "user_features_*.csv")
    attributes = {name: AttributeConfig(column=name) for name in USER_ATTRIBUTES}
    return EntityConfig(files=_files(source, files), id="user_id", attributes=attributes)


def _files(source: Path, files: list[Path]) -> FilesConfig:
    return FilesConfig(files=[str(file.relative_to(source)) for file in files])


def _known(block: Block) -> pa.Array:
    """Milliseconds at which all of a row's signals were known: once playing and staying had ended."""
    time, _ = numbers(block.columns["time_ms"], column="time_ms")
    spent = sum(np.nan_to_num(np.maximum(numbers(block.columns[name], column=name)[0], 0)) for name in SPENT)
    return pa.array(time + np.minimum(spent, LONGEST * 1000), pa.float64(), from_pandas=True)
