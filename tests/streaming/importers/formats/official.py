"""Small folders in the official layouts, made here: no row of the data sets themselves."""

from pathlib import Path

import numpy as np

from streaming.importers.formats.kuairand import LOG_COLUMNS, USER_ATTRIBUTES
from streaming.importers.formats.movielens import GENRES

HOUR_MS = 3_600_000
START_MS = 1_649_347_200_000  # 2022-04-07 16:00 UTC, the begin of KuaiRand's first day in China


def write(file: Path, rows: list[list[object]], *, delimiter: str = ",", encoding: str = "utf-8") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [delimiter.join("" if cell is None else str(cell) for cell in row) for row in rows]
    file.write_bytes(("\n".join(lines) + "\n").encode(encoding))


def kuairand_row(**cells: int) -> list[object]:
    """A row of the log, 0 where nothing is said."""
    return [cells.get(name, 0) for name in LOG_COLUMNS]


def kuairand(folder: Path, *, days: int = 3, users: int = 12, videos: int = 20) -> Path:
    """KuaiRand-Pure: two logs of standard policies, one of random exposure, and the attributes."""
    random, logs = np.random.default_rng(3), {"standard_4_08_to_4_21": [], "standard_4_22_to_5_08": [], "random": []}
    for day in range(days):
        for user in range(users):
            shown = random.permutation(videos)[:4]
            time = START_MS + day * 24 * HOUR_MS + int(random.integers(0, 24 * HOUR_MS))
            log = ("standard_4_08_to_4_21", "standard_4_22_to_5_08", "random")[min(day, 1) if user % 4 else 2]
            for video in shown.tolist():
                click = int(random.random() < 0.4)
                played = click * int(random.integers(1, 40_000))
                logs[log].append(
                    kuairand_row(
                        user_id=user,
                        video_id=video,
                        date=20220408 + day,
                        time_ms=time,
                        is_click=click,
                        long_view=int(played > 18_000),
                        is_like=click * int(random.random() < 0.2),
                        play_time_ms=played,
                        duration_ms=10_000 + 1000 * video,
                        comment_stay_time=click * 500 * (user % 2),
                        is_rand=int(log == "random"),
                        tab=user % 3,
                    )
                )
    names = {"random": "log_random_4_22_to_5_08_pure.csv"}
    for log, rows in logs.items():
        write(folder / "data" / names.get(log, f"log_{log}_pure.csv"), [list(LOG_COLUMNS), *rows])
    video = ["video_id", "author_id", "video_type", "upload_dt", "upload_type", "visible_status", "video_duration"]
    video += ["server_width", "server_height", "music_id", "music_type", "tag"]
    films = [
        [v, v % 5, "NORMAL", "2022-04-01", "Kmovie", v % 2, 10_000, 720, 1280, v % 3, 9, f'"{v % 4},9"']
        for v in range(videos)
    ]
    write(folder / "data" / "video_features_basic_pure.csv", [video, *films])
    # Averages over the whole month: whoever reads them knows the future.
    write(folder / "data" / "video_features_statistic_pure.csv", [["video_id", "play_cnt"], [0, 1e9]])
    people = [[u, *(f"{name}={u % 2}" for name in USER_ATTRIBUTES)] for u in range(users)]
    write(folder / "data" / "user_features_pure.csv", [["user_id", *USER_ATTRIBUTES], *people])
    return folder


RATINGS = [(1 + n % 5, 1 + n % 7, 1 + (n * 3) % 5, 874_724_710 + n * 90_000) for n in range(60)]
"""User, film, rating, second; 60 days."""

FILMS = [(1, "Toy Story (1995)", ["Animation", "Children's", "Comedy"]), (2, "Été, un (1994)", ["Drama"])]
FILMS += [(3, '"Great" One (2001)', ["Action", "Drama"]), (4, "No year", ["Comedy"]), (5, "Five (1971)", ["Comedy"])]
FILMS += [(6, "Six (1999)", ["Action"]), (7, "Seven (1995)", ["Crime", "Thriller"])]


def movielens_100k(folder: Path) -> Path:
    write(folder / "u.data", [list(row) for row in RATINGS], delimiter="\t")
    films = [
        [film, title, "01-Jan-1995", None, "http://us.imdb.com/x", *(int(genre in genres) for genre in GENRES)]
        for film, title, genres in FILMS
    ]
    write(folder / "u.item", films, delimiter="|", encoding="latin-1")
    people = [[user, 20 + user, "MF"[user % 2], "writer", "85711"] for user in range(1, 6)]
    write(folder / "u.user", people, delimiter="|", encoding="latin-1")
    return folder


def movielens_1m(folder: Path) -> Path:
    write(folder / "ratings.dat", [list(row) for row in RATINGS], delimiter="::")
    films = [[film, title, "|".join(genres)] for film, title, genres in FILMS]
    write(folder / "movies.dat", films, delimiter="::", encoding="latin-1")
    people = [[user, "MF"[user % 2], 25, user, "48067"] for user in range(1, 6)]
    write(folder / "users.dat", people, delimiter="::", encoding="latin-1")
    return folder


def movielens_25m(folder: Path) -> Path:
    write(folder / "ratings.csv", [["userId", "movieId", "rating", "timestamp"], *map(list, RATINGS)])
    films = [[film, '"' + title.replace('"', '""') + '"', "|".join(genres)] for film, title, genres in FILMS]
    write(folder / "movies.csv", [["movieId", "title", "genres"], *films])
    return folder


USER_PROFILE = ["userid", "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level"]
USER_PROFILE += ["shopping_level", "occupation", "new_user_class_level "]
PLACES = ("430548_1007", "430539_1007")


def taobao(folder: Path) -> Path:
    random = np.random.default_rng(4)
    rows: list[list[object]] = []
    for number in range(200):
        click = int(random.random() < 0.3)
        time = 1_494_032_110 + number * 1800
        rows.append([number % 9, time, number % 13, PLACES[number % 2], 1 - click, click])
    write(folder / "raw_sample.csv", [["user", "time_stamp", "adgroup_id", "pid", "nonclk", "clk"], *rows])
    ads = [[ad, ad % 4, ad % 3, ad % 5, "NULL" if ad == 1 else ad % 6, 2.5 * 2**ad] for ad in range(13)]
    write(folder / "ad_feature.csv", [["adgroup_id", "cate_id", "campaign_id", "customer", "brand", "price"], *ads])
    people = [[user, 0, 5, 1 + user % 2, 3, None, 3, 0, user % 4] for user in range(9)]
    write(folder / "user_profile.csv", [USER_PROFILE, *people])
    return folder


def taobao_x1(folder: Path) -> Path:
    """RecZoo's layout: no times, histories as text, 7 of 8 rows in the training file."""
    names = ["clk", "btag_his", "cate_his", "brand_his", *(name.strip() for name in USER_PROFILE)]
    names += ["adgroup_id", "cate_id", "campaign_id", "customer", "brand", "price", "pid", "btag"]
    rows: list[list[object]] = [
        [
            int(n % 3 == 0),
            "1^1",
            "4^7",
            "2^9",
            n % 9,
            0,
            5,
            1,
            3,
            2,
            3,
            0,
            1,
            n % 13,
            n % 13 % 4,
            1,
            2,
            3,
            9.5,
            n % 2,
            1,
        ]
        for n in range(160)
    ]
    write(folder / "train.csv", [names, *rows[:140]])
    write(folder / "test.csv", [names, *rows[140:]])
    return folder


def criteo_rows(size: int) -> list[list[object]]:
    """Label, 13 numbers, 26 categories; the second number is missing now and then, the third one negative."""
    return [
        [
            int(n % 4 == 0),
            n,
            None if n % 3 == 0 else n,
            -2,
            *([7] * 10),
            *(f"{n % 5:08x}" if c else None for c in range(26)),
        ]
        for n in range(size)
    ]
