"""A vocabulary that learns no more, as a table: where the embedding rows of every listed item and user are.

Training looks up codes in tables that change with every batch. A model that serves never changes, so what each item and
user of the catalogues is looked up by is worked out once, when the model is loaded: 4 bytes a feature and row.

Shape legend: U distinct items, B requests, F features.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from foundation.hstu.vocabulary import BatchSlots, BatchVocabulary, Vocabulary
from streaming.batch import RequestBatch
from streaming.catalogue import Catalogue


@dataclass(frozen=True, kw_only=True)
class ListedBatch(RequestBatch):
    """A batch that says where its items and users are listed.

    Attributes:
        item_U, user_B: int64, rows of the catalogues; the last row is that of everything that is not listed.
    """

    item_U: np.ndarray
    user_B: np.ndarray


class FrozenVocabulary(nn.Module):
    """Says of a :class:`ListedBatch` what ``vocabulary``, in evaluation mode, says of it."""

    def __init__(self, vocabulary: BatchVocabulary, *, items: Catalogue, users: Catalogue) -> None:
        super().__init__()
        self._context = vocabulary.context
        first = np.cumsum([0, vocabulary.items.rows, vocabulary.users.rows])
        self._items = _rows(vocabulary.items, items) + first[0]
        self._users = _rows(vocabulary.users, users) + first[1]
        self._first_context = int(first[2])

    def forward(self, batch: ListedBatch) -> BatchSlots:
        """Rows of everything categorical in ``batch``."""
        item_UF, user_BF = self._items[batch.item_U], self._users[batch.user_B]
        context = self._context.eval()(batch.context, time=0)
        sizes = (item_UF.shape, user_BF.shape, (len(batch), len(self._context.features)))
        widths = np.repeat([width for _, width in sizes], [things for things, _ in sizes])
        rows = [torch.from_numpy(part.reshape(-1).astype(np.int64)) for part in (item_UF, user_BF)]
        return BatchSlots(
            row_I=torch.cat([*rows, context.row_I + self._first_context]),
            offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(widths)])),
            evicted=_NOBODY,
            counts=(len(item_UF), len(batch), len(batch)),
        )


_NOBODY: Tensor = torch.zeros(0, dtype=torch.int64)


def _rows(vocabulary: Vocabulary, catalogue: Catalogue) -> np.ndarray:
    """Rows of every feature's slot, int32 ``[rows of the catalogue, F]``."""
    found = [
        ids.lookup(catalogue.code[:, catalogue.features.index(name)]) + vocabulary.first_row[name]
        for name, ids in vocabulary.tables()
    ]
    return np.stack(found, axis=1).astype(np.int32) if found else np.zeros((len(catalogue.code), 0), np.int32)
