"""Cutting a global batch into logical shards of as many tokens each, requests whole.

Shape legend: B requests, S shards.
"""

import numpy as np


def split_by_tokens(tokens_B: np.ndarray, shards: int) -> list[np.ndarray]:
    """Indices of the requests of each shard, ascending: the longest request first, to the shard with the least.

    No shard has more tokens than another by more than those of the longest request (Graham 1969). With fewer requests
    than shards some are empty.

    Args:
        tokens_B: int64, at least 0.
        shards: S.
    """
    members: list[list[int]] = [[] for _ in range(shards)]
    load_S = np.zeros(shards, dtype=np.int64)
    for request in np.argsort(-tokens_B, kind="stable").tolist():
        least = int(load_S.argmin())
        members[least].append(request)
        load_S[least] += tokens_B[request]
    return [np.sort(np.array(each, dtype=np.int64)) for each in members]
