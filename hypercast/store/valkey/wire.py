"""Many commands at once, as the server reads them.

The client writes a command argument by argument. Here keys and values have one width each, so that all commands of a
batch differ in fixed columns only and are written as the rows of one array.

Shape legend: N commands, C bytes of a command.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from valkey.exceptions import ResponseError

from hypercast.store.engine import Bytes


def pack(*arguments: bytes | Bytes) -> Bytes:
    """Commands uint8 ``[N, C]``; each argument is the same for all (bytes), or a row for each (uint8 ``[N, any]``)."""
    return _columns(b"*%d\r\n" % len(arguments), arguments)


def pack_mget(key_NK: Bytes) -> bytes:
    """One MGET of N keys."""
    return b"*%d\r\n$4\r\nMGET\r\n" % (len(key_NK) + 1) + _columns(b"", [key_NK]).tobytes()


def one(*words: bytes) -> bytes:
    """A single command."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _columns(head: bytes, arguments: Sequence[bytes | Bytes]) -> Bytes:
    row, columns = head, []
    for argument in arguments:
        width = len(argument) if isinstance(argument, bytes) else argument.shape[1]
        row += b"$%d\r\n" % width
        if not isinstance(argument, bytes):
            columns.append((len(row), argument))
            argument = bytes(width)
        row += argument + b"\r\n"
    packed_NC = np.empty((len(columns[0][1]), len(row)), np.uint8)
    packed_NC[:] = np.frombuffer(row, np.uint8)
    for start, column in columns:
        packed_NC[:, start : start + column.shape[1]] = column
    return packed_NC


def exchange(requests: list[tuple[Any, bytes, int]]) -> list[list[Any]]:
    """Send each node its packed commands, all before the first reply is read; the replies of each.

    Args:
        requests: client of a node, commands, how many they are.

    Raises:
        valkey.ValkeyError: a connection failed, or a command did; the first failure, once all replies are read.
    """
    connections = []
    failed: list[ResponseError] = []

    def reply(connection: Any) -> Any:
        try:
            return connection.read_response()
        except ResponseError as error:
            failed.append(error)
            return None

    try:
        for node, commands, _ in requests:
            connections.append((node.connection_pool, node.connection_pool.get_connection("GET")))
            connections[-1][1].send_packed_command([commands])
        replies = [
            [reply(connection) for _ in range(count)]
            for (_, connection), (_, _, count) in zip(connections, requests, strict=True)
        ]
    except BaseException:
        for _, connection in connections:
            connection.disconnect()  # replies may be on their way that nobody will ask for
        raise
    finally:
        for pool, connection in connections:
            pool.release(connection)
    if failed:
        raise failed[0]
    return replies
