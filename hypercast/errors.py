"""Errors of this package that a user can act on (see :mod:`streaming.errors`)."""

from streaming.errors import UserError


class RegistryError(UserError):
    """A snapshot or pin that does not exist, is damaged, or contradicts what was published before."""


class ConflictError(RegistryError):
    """Somebody else has moved the channel, or published, in between."""


class StoreError(UserError):
    """Embeddings that do not fit the store, or a store whose files are damaged."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read back exactly."""
