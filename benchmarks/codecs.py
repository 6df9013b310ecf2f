"""What a codec costs the experts: normalised entropy when the same embeddings are read in fewer bytes.

Reads a finished run whose foundation model published ``float32``. Its TAE log is written again under every codec, and
once cut to the first half of each vector (a representation that was not trained for that); teacher logits stay as they
are. On each log two arms are trained, with the same seeds and data order: ``tae``, which reads nothing of the teacher
but the vector, and ``treated``, which also starts from its logit. Gains are those over the same arm on ``float32``::

    RUN/platform.yaml, RUN/tae_log/          what is read
    RUN/codecs/VARIANT/                      its log and predictions; an unfinished measurement goes on from them
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.options import Options, Values
from experts.steps import SurfaceLearner
from hypercast.codec import rows
from hypercast.pins import Pin, parse_snapshot_name
from hypercast.runtime.config import PlatformConfig
from hypercast.snapshot import Snapshot
from hypercast.store.segment import LOGIT, Segment
from hypercast.store.tae_log import TaeLog
from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.errors import ConfigError
from streaming.workspace import Workspace
from transfer import gain, predictions, sums
from transfer.gain import COLD, CONTROL, POOLED, TAE, TREATED

REFERENCE = "float32"
REPRESENTATION = "penultimate"
ARMS = (TAE, TREATED)
EVERY_ROW = slice(None)


def measure(options: Options) -> Values:
    """Bytes, error and gains by variant on the windows of :data:`transfer.gain.COLD`, over the users to develop on.

    Raises:
        ConfigError: no run given, or one that did not publish ``float32``.
    """
    if options.work is None:
        raise ConfigError("codecs needs a finished run: python -m benchmarks codecs --work runs/demo")
    config = configuration.load(options.work / "platform.yaml", PlatformConfig)
    workspace = Workspace(Dataset.open(options.data or config.dataset.path))
    source = config.log.build(options.work / "tae_log")
    segments = [segment for segment in source.segments() if segment.window <= COLD.last]
    if not segments or {segment.facts.dtype for segment in segments} != {REFERENCE}:
        raise ConfigError(
            f"{source.root}: the reference is {REFERENCE}. Run a platform file with foundation: {{publisher: {{dtype: "
            "float32}}} to its end, and give its run folder."
        )
    torch.set_num_threads(config.threads)
    width = segments[0].facts.representations[REPRESENTATION]
    variants = {name: (name, width) for name in rows.NAMES} | {"float32_half": (REFERENCE, width // 2)}
    values: Values = {"width": width, "seeds": len(config.seeds), "users": 0, "rows": 0}
    for variant, (codec, kept) in variants.items():
        folder = options.work / "codecs" / variant
        log = config.log.build(folder / "tae_log")
        values[f"{variant}_bytes"] = rows.named(codec).row_bytes(kept)
        values[f"{variant}_error"] = _rewrite(segments, log, codec=codec, width=kept)
        for surface in workspace.dataset.config.surfaces:
            _train(config, workspace, surface, log=log, width=kept, run=folder, control=variant == REFERENCE)
    return values | _compare(options.work / "codecs", list(variants), workspace)


def _rewrite(segments: list[Segment], log: TaeLog, *, codec: str, width: int) -> float:
    """Write ``segments`` into ``log`` under a codec, cut to ``width``; root mean square error over that of vectors."""
    lost = total = 0.0
    for segment in segments:
        vector_CR = segment.vectors(REPRESENTATION, EVERY_ROW)
        lineage, version = parse_snapshot_name(segment.snapshot)
        snapshot = Snapshot(
            name=segment.snapshot,
            lineage=lineage,
            version=version,
            watermark=segment.facts.watermark,
            path=log.root,
            manifest={"dims": {REPRESENTATION: width}, "dtype": codec, "tasks": segment.facts.tasks},
        )
        table = log.rows(
            snapshot=snapshot,
            **{name: segment.numpy(name) for name in ("request_id", "candidate_id", "item_id", "time")},
            representations={REPRESENTATION: rows.prefix(vector_CR, width)},
            teacher_logits={task: segment.numpy(LOGIT + task) for task in segment.facts.tasks},
        )
        written = log.write(
            snapshot=snapshot, window=segment.window, table=table, requests_digest=segment.requests_digest
        )
        kept_CR = written.vectors(REPRESENTATION, EVERY_ROW)
        lost += float(np.square(kept_CR - vector_CR[:, :width]).sum()) + float(np.square(vector_CR[:, width:]).sum())
        total += float(np.square(vector_CR).sum())
    return float(f"{(lost / total) ** 0.5:.3g}")


def _train(
    config: PlatformConfig, workspace: Workspace, surface: str, *, log: TaeLog, width: int, run: Path, control: bool
) -> None:
    """Predict and learn every window up to the span's last with the arms that read the log, unless it was done."""
    if predictions.path_of(run, surface, COLD.last).is_file():
        return
    learner = SurfaceLearner(
        config=config.expert,
        surfaces=[surface],
        workspace=workspace,
        log=log,
        pin=Pin(expert=surface, lineage=config.foundation.publisher.lineage),
        embedding=width,
        seeds=config.seeds,
        run=run,
    )
    arms = (*ARMS, CONTROL) if control else ARMS
    learner.members = {key: member for key, member in learner.members.items() if key[0] in arms}
    for window in workspace.dataset.windows:
        if window.index <= COLD.last:
            learner.evaluate(window)
            for batch in learner.batches(window):
                learner.step(batch)


def _compare(folder: Path, variants: list[str], workspace: Workspace) -> Values:
    """Gain in % of each variant's arms over those on the reference, with its 95 % interval, on all surfaces."""
    task = workspace.dataset.config.tasks[0].name
    found = [
        sums.accumulate(table, task=task)
        for surface in workspace.dataset.config.surfaces
        for table in _side_by_side(folder, variants, surface)
    ]
    pooled = sums.combine(found).select(untouched=False)
    values: Values = {}
    pairs = [(f"{arm}_{variant}", f"{arm}_{REFERENCE}") for arm in ARMS for variant in variants if variant != REFERENCE]
    over_control = [(f"{arm}_{REFERENCE}", CONTROL) for arm in ARMS]
    for one in gain.gains(pooled, surface=POOLED, span=COLD.name, pairs=over_control + pairs):
        name = one.arm if one.against != CONTROL else f"{one.arm}_over_control"
        values[f"{name}_ne"] = round(one.ne_arm, 5)
        values[f"{name}_gain_pct"] = round(one.gain_pct, 3)
        values[f"{name}_gain_lo"], values[f"{name}_gain_hi"] = round(one.lo, 3), round(one.hi, 3)
        values |= {"users": one.users, "rows": one.rows}
    return values | {"noise_floor_pct": round(gain.noise_floor(pooled, arm=f"{TAE}_{REFERENCE}") or 0.0, 3)}


def _side_by_side(folder: Path, variants: list[str], surface: str) -> Iterator[pa.Table]:
    """The prediction tables of the span, with the columns of every variant in one, named ARM_VARIANT."""
    for window in range(COLD.first, COLD.last + 1):
        whole = predictions.read(folder / REFERENCE, surface=surface, window=window)
        columns = [name for name in whole.column_names if predictions.Column.parse(name) is not None]
        base = whole.drop_columns([name for name in columns if f".{CONTROL}." not in name])
        for variant in variants:
            table = predictions.read(folder / variant, surface=surface, window=window)
            for name in table.column_names:
                column = predictions.Column.parse(name)
                if column is not None and column.arm in ARMS:
                    renamed = predictions.Column(column.task, f"{column.arm}_{variant}", column.seed)
                    base = base.append_column(renamed.name, table[name])
        yield base
