"""Trainings that are done once: each leaves a record, found again by what it depends on."""

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.sequential.evaluation import held_out_ranks, hit_rate, ndcg
from benchmarks.sequential.sequences import Index, ItemSequences
from benchmarks.sequential.training import Recipe, SequenceTrainer, train
from streaming.files import write_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """HR@10, NDCG@10, HR@50 and HR@200 after an epoch."""

    epoch: int
    hr10: float
    ndcg10: float
    hr50: float
    hr200: float


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a training leaves.

    Attributes:
        losses: mean loss of each epoch.
        evaluations: on the ``held_out``-th last items, in the order of epochs.
        ranks: of these items after the last epoch, from 0, one a sequence.
        seconds_per_step: mean over the training.
        minutes: of the whole training with its evaluations; ``cpu_minutes``, the same in processor time.
        threads: of PyTorch.
    """

    losses: list[float]
    evaluations: list[Evaluation]
    ranks: list[int]
    seconds_per_step: float
    minutes: float
    cpu_minutes: float
    threads: int

    def rank_array(self) -> Index:
        """int64 ``[S]``."""
        return np.array(self.ranks, dtype=np.int64)


class Runs:
    """Trains on ``data``, or reads the record of the same training from ``folder``."""

    def __init__(self, *, data: ItemSequences, folder: Path) -> None:
        self.data = data
        self.folder = folder
        arrays = [data.item_E, data.offsets] + ([] if data.time_E is None else [data.time_E])
        self._digest = hashlib.blake2b(b"".join(array.tobytes() for array in arrays), digest_size=8).hexdigest()

    def record(self, recipe: Recipe, *, held_out: int, every: int | None = None) -> Record:
        """Train on all but each sequence's last ``held_out`` items, evaluate on the first of these.

        Evaluates after every ``every`` epochs and after the last; after the last alone if not given.
        """
        values = {"data": self._digest, "held_out": held_out, "every": every, "recipe": recipe.model_dump(mode="json")}
        digest = hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()
        path = self.folder / f"{digest}.json"
        if not path.exists():
            logger.info("training %s: %s", digest, values)
            record = self._train(recipe, held_out=held_out, every=every or recipe.epochs)
            write_text(path, json.dumps({**values, **asdict(record)}, indent=1))
        saved = {name: value for name, value in json.loads(path.read_text()).items() if name not in values}
        saved["evaluations"] = [Evaluation(**each) for each in saved["evaluations"]]
        return Record(**saved)

    def _train(self, recipe: Recipe, *, held_out: int, every: int) -> Record:
        trainer = SequenceTrainer(recipe=recipe, items=self.data.items)
        losses: list[float] = []
        steps: list[float] = []
        evaluations: list[Evaluation] = []
        ranks: Index = np.empty(0, dtype=np.int64)

        def after_epoch(epoch: int, loss: float, seconds: float) -> None:
            nonlocal ranks
            losses.append(loss)
            steps.append(seconds)
            shown = f"epoch {epoch} of {recipe.epochs}, {seconds:.3f} s a step, loss {loss:.4f}"
            if epoch % every == 0 or epoch == recipe.epochs:
                ranks = held_out_ranks(trainer.averaged, self.data, held_out=held_out)
                evaluations.append(
                    Evaluation(
                        epoch=epoch,
                        hr10=hit_rate(ranks, 10),
                        ndcg10=ndcg(ranks, 10),
                        hr50=hit_rate(ranks, 50),
                        hr200=hit_rate(ranks, 200),
                    )
                )
                shown += f", HR@10 {evaluations[-1].hr10:.4f}, NDCG@10 {evaluations[-1].ndcg10:.4f}"
            logger.info(shown)

        begun, begun_cpu = time.perf_counter(), time.process_time()
        train(trainer, self.data, held_out=held_out, after_epoch=after_epoch)
        return Record(
            losses=losses,
            evaluations=evaluations,
            ranks=ranks.tolist(),
            seconds_per_step=float(np.mean(steps)),
            minutes=(time.perf_counter() - begun) / 60,
            cpu_minutes=(time.process_time() - begun_cpu) / 60,
            threads=torch.get_num_threads(),
        )
