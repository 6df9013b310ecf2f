"""Which server has which key.

Shape legend: N keys.
"""

import binascii
import itertools
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import valkey
from valkey import exceptions
from valkey.cluster import ClusterNode

from hypercast.store.engine import Integers
from hypercast.store.valkey.config import ValkeyConfig

SLOTS = 16_384


@dataclass(frozen=True)
class Servers:
    """A client, the primaries, and in a cluster the number of the primary for each slot.

    ``tags`` has one for each primary: a key with that tag in its first braces is there.
    """

    client: Any
    nodes: list[Any]
    tags: list[str]
    node_of_slot: Integers | None = None

    def places(self, keys: list[bytes]) -> Integers:
        """Numbers of the primaries that have the keys, int64 [N]."""
        if self.node_of_slot is None:
            return np.zeros(len(keys), np.int64)
        return self.node_of_slot[[slot_of(key) for key in keys]]


def connect(config: ValkeyConfig) -> Servers:
    """Raises ClusterError if nobody has some of the slots."""
    options = config.options(os.environ)
    addresses = config.addresses
    if not config.cluster:
        client = valkey.Valkey(host=addresses[0][0], port=addresses[0][1], db=config.database, **options)
        return Servers(client, [client], ["0"])
    cluster = valkey.ValkeyCluster(
        startup_nodes=[ClusterNode(*address) for address in addresses], cluster_error_retry_attempts=0, **options
    )
    slots = cluster.nodes_manager.slots_cache
    if len(slots) < SLOTS:
        raise exceptions.ClusterError(f"only {len(slots)} of {SLOTS} slots are served")
    owners = [slots[slot][0] for slot in range(SLOTS)]
    primaries = list({node.name: node for node in owners}.values())  # each with a slot at least
    place = {node.name: number for number, node in enumerate(primaries)}
    table = np.array([place[node.name] for node in owners], np.int64)
    tags = [
        next(tag for tag in map(str, itertools.count()) if table[slot_of(tag.encode())] == number)
        for number in range(len(primaries))
    ]
    return Servers(cluster, [cluster.get_valkey_connection(node) for node in primaries], tags, table)


def slot_of(key: bytes) -> int:
    """Of a key by the cluster's rule: the CRC of what the first braces hold, or of all of it."""
    opening = key.find(b"{")
    closing = key.find(b"}", opening + 1)
    if opening >= 0 and closing > opening + 1:
        key = key[opening + 1 : closing]
    return binascii.crc_hqx(key, 0) % SLOTS
