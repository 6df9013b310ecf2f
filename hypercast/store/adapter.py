"""A linear map from one version's vectors to another's, so that an expert can read a model it was not trained on.

Two versions of a model embed the same things in spaces that differ by training on: turned, stretched, and moved
besides what the newer one has learned. A map with a bias, fitted by ridge regression on a probe set that both have
scored, undoes as much of it as is linear; what is left is reported as the error on rows that it was not fitted on.

Sums run in a fixed order and use no library whose result depends on its number of threads: a refitted adapter has the
same bits. The penalty is the one with the least generalised cross-validation (Golub, Heath and Wahba 1979).

Shape legend: N probe rows, D width of the source's vectors, E width of the target's, G = D x D.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from hypercast.errors import StoreError
from hypercast.pins import parse_snapshot_name

Floats = NDArray[np.floating[Any]]
PENALTIES = (1e-8, 1e-5, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties that are tried, in units of the mean variance of the source's numbers."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """``vector @ weight + bias``, and how well it does.

    Attributes:
        source: snapshot whose vectors it takes, ``FM@0008``.
        target: snapshot whose vectors it gives, ``FM@0007``.
        weight_DE: float32.
        bias_E: float32.
        relative_error: root of (squared error / squared distance to the mean) of the target's vectors, on held-out
            rows: 0 is exact, 1 is no better than the mean vector. Measured by the map fitted on the other rows; the
            one that is kept was fitted on all of them.
        r2: 1 - the square of it.
        rows: N.
    """

    source: str
    target: str
    weight_DE: NDArray[np.float32]
    bias_E: NDArray[np.float32]
    relative_error: float
    r2: float
    rows: int

    def apply(self, vector_ND: Floats) -> NDArray[np.float32]:
        """Vectors of ``source`` float [N, D] as vectors of ``target``, float32 [N, E].

        Raises:
            StoreError: another width.
        """
        if vector_ND.ndim != 2 or vector_ND.shape[1] != len(self.weight_DE):
            raise StoreError(
                f"adapter from {self.source} to {self.target}: takes vectors [N, {len(self.weight_DE)}], got "
                f"{vector_ND.shape}."
            )
        return np.asarray(vector_ND, np.float32) @ self.weight_DE + self.bias_E

    def to_bytes(self) -> bytes:
        """SHA-256 of what follows (32 bytes), then a safetensors file. Equal adapters have equal bytes."""
        facts = {name: getattr(self, name) for name in ("source", "target", "relative_error", "r2", "rows")}
        data = save_tensors(
            {"weight": np.ascontiguousarray(self.weight_DE), "bias": np.ascontiguousarray(self.bias_E)},
            metadata={"adapter": json.dumps(facts, sort_keys=True)},
        )
        return hashlib.sha256(data).digest() + data

    @staticmethod
    def from_bytes(data: bytes, *, where: str) -> "Adapter":
        """The inverse of :meth:`to_bytes`; ``where`` is what an error calls the place that they came from.

        Raises:
            StoreError: not what was written.
        """
        digest, data = data[:32], data[32:]
        if hashlib.sha256(data).digest() != digest:
            raise StoreError(
                f"{where}: not an adapter, or damaged (its SHA-256 differs). Remove it: it is fitted again with the "
                "next version."
            )
        tensors = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["adapter"])
        return Adapter(weight_DE=tensors["weight"], bias_E=tensors["bias"], **facts)


def fit(*, source: str, target: str, source_ND: Floats, target_NE: Floats, group_N: NDArray[np.int64]) -> Adapter:
    """The adapter from ``source`` to ``target``, from vectors of the same N probe rows.

    Args:
        source, target: names of snapshots of one lineage.
        source_ND, target_NE: float, finite.
        group_N: rows of one group (a request's candidates) are held out together; every second group is.

    Raises:
        StoreError: lengths that differ, other lineages, or fewer than two groups.
    """
    groups = np.unique(group_N, return_inverse=True)[1]
    if not len(source_ND) == len(target_NE) == len(group_N) or len(group_N) == 0 or groups.max() == 0:
        raise StoreError(
            f"adapter from {source} to {target}: needed are equally many vectors of both and at least two groups; got "
            f"{len(source_ND)} and {len(target_NE)} vectors of {len(np.unique(group_N))} groups."
        )
    if parse_snapshot_name(source)[0] != parse_snapshot_name(target)[0]:
        raise StoreError(f"adapter from {source} to {target}: they are of different lineages; an expert reads one.")
    x_ND, y_NE = np.asarray(source_ND, np.float64), np.asarray(target_NE, np.float64)
    held_N = groups % 2 == 1
    weight_DE, bias_E = _regress(x_ND[~held_N], y_NE[~held_N])
    error_NE = y_NE[held_N] - _product(x_ND[held_N], weight_DE) - bias_E
    spread_NE = y_NE[held_N] - y_NE[held_N].mean(axis=0)
    # Rounding is no spread: equal vectors that are met are met exactly.
    total = max(float((spread_NE**2).sum()), 1e-12 * float((y_NE[held_N] ** 2).sum()))
    share = float((error_NE**2).sum()) / total if total else 0.0
    weight_DE, bias_E = _regress(x_ND, y_NE)
    return Adapter(
        source=source,
        target=target,
        weight_DE=weight_DE.astype(np.float32),
        bias_E=bias_E.astype(np.float32),
        relative_error=share**0.5,
        r2=1 - share,
        rows=len(group_N),
    )


def _regress(x_ND: Floats, y_NE: Floats) -> tuple[Floats, Floats]:
    """Weight [D, E] and bias [E] of the ridge regression with the best penalty."""
    mean_D, mean_E = x_ND.mean(axis=0), y_NE.mean(axis=0)
    x_ND, y_NE = x_ND - mean_D, y_NE - mean_E
    gram_G, cross_DE = _product(x_ND.T, x_ND), _product(x_ND.T, y_NE)
    unit = float(np.trace(gram_G)) / len(gram_G) or 1.0
    best, weight_DE = np.inf, np.zeros_like(cross_DE)
    for penalty in PENALTIES:
        inverse_G = _inverse(gram_G + penalty * unit * np.eye(len(gram_G)))
        candidate_DE = _product(inverse_G, cross_DE)
        free = len(x_ND) - 1 - float((inverse_G * gram_G).sum())  # rows less effective parameters, one for the bias
        if free <= 0:
            continue
        criterion = float(((y_NE - _product(x_ND, candidate_DE)) ** 2).sum()) / free**2
        if criterion < best:
            best, weight_DE = criterion, candidate_DE
    return weight_DE, mean_E - _product(mean_D[None], weight_DE)[0]


def _product(left: Floats, right: Floats) -> Floats:
    """A matrix product whose sums have one order, whatever the number of threads."""
    return np.einsum("ij,kj->ik", left, np.ascontiguousarray(right.T))


def _inverse(matrix_G: Floats) -> Floats:
    """Of a symmetric positive definite matrix, by Gauss-Jordan elimination; it needs no pivots for these."""
    work_G = matrix_G.copy()
    for pivot in range(len(work_G)):
        row = work_G[pivot] / work_G[pivot, pivot]
        column = work_G[:, pivot].copy()
        work_G -= np.outer(column, row)
        work_G[:, pivot] = -column / column[pivot]
        work_G[pivot] = row
        work_G[pivot, pivot] = 1 / column[pivot]
    return work_G
