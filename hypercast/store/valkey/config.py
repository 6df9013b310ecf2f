"""Where the servers are and how to reach them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pydantic

from hypercast.errors import StoreError
from hypercast.pins import NAME
from streaming.config import Config

PLAIN, ENCRYPTED = ("valkey", "redis"), ("valkeys", "rediss")
DEFAULT_PORT = 6379


class Tls(Config):
    """PEM files.

    Attributes:
        ca: who must have signed the server's certificate; without it whom the machine trusts.
        certificate: our own, for servers that ask for one, and its ``key``.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @pydantic.model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: give both or neither")
        return self


class ValkeyConfig(Config):
    """What the engine is built from.

    Attributes:
        urls: ``valkey://HOST:PORT[/DATABASE]`` (or ``redis://``); ``valkeys://``, ``rediss://`` over TLS. One; of a
            cluster any of its nodes, from which the others are learnt.
        cluster: the servers are a cluster.
        username: whom to log in as; without it the default user.
        password_env: environment variable that holds the password; without it none is sent.
        tls: certificates, for URLs with TLS.
        prefix: begins all keys; engines with different prefixes do not see each other.
        timeout: seconds that one command may take.
        patience: seconds that a call waits for a server that is gone.
        batch: rows sent at once.
        replicas: replicas of each primary that must have what ``commit`` returns for.
    """

    urls: list[str] = pydantic.Field(default=[f"valkey://127.0.0.1:{DEFAULT_PORT}"], min_length=1)
    cluster: bool = False
    username: str | None = None
    password_env: str | None = None
    tls: Tls = Tls()
    prefix: str = pydantic.Field(default="hypercast", pattern=rf"^{NAME.pattern}$")
    timeout: float = pydantic.Field(default=5.0, gt=0)
    patience: float = pydantic.Field(default=30.0, ge=0)
    batch: int = pydantic.Field(default=1024, ge=1)
    replicas: int = pydantic.Field(default=0, ge=0)

    @pydantic.model_validator(mode="after")
    def _reachable(self) -> Self:
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in PLAIN + ENCRYPTED or not parts.hostname or parts.query or parts.fragment:
                raise ValueError("a url is valkey://HOST:PORT[/DATABASE], or valkeys:// over TLS")
            if parts.username or parts.password:
                raise ValueError("a url holds no user or password: use username and password_env")
            if parts.path.strip("/") and (self.cluster or not parts.path[1:].isdecimal()):
                raise ValueError("a database is a number, and a cluster has none: valkey://HOST:PORT/0")
            parts.port  # noqa: B018 (raises if it is no port)
        if len({urlsplit(url).scheme in ENCRYPTED for url in self.urls}) > 1:
            raise ValueError("either all urls are over TLS or none")
        if len(self.urls) > 1 and not self.cluster:
            raise ValueError("several urls need cluster: true")
        if self.tls != Tls() and not self.encrypted:
            raise ValueError("tls needs urls that begin with valkeys:// or rediss://")
        return self

    @property
    def encrypted(self) -> bool:
        """Whether connections use TLS."""
        return urlsplit(self.urls[0]).scheme in ENCRYPTED

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port by URL."""
        return [(str(urlsplit(url).hostname), urlsplit(url).port or DEFAULT_PORT) for url in self.urls]

    @property
    def database(self) -> int:
        """Number of the database on a single server."""
        return int(urlsplit(self.urls[0]).path.strip("/") or 0)

    def options(self, environment: Mapping[str, str]) -> dict[str, Any]:
        """Keyword arguments of the client.

        Raises:
            StoreError: the variable ``password_env`` is not set, or a PEM file is missing.
        """
        found: dict[str, Any] = {"socket_timeout": self.timeout, "socket_connect_timeout": self.timeout}
        found["username"] = self.username
        if self.password_env is not None:
            if self.password_env not in environment:
                raise StoreError(
                    f"the store's password is to come from the environment variable {self.password_env} "
                    f"(password_env), which is not set. Example: export {self.password_env}=..."
                )
            found["password"] = environment[self.password_env]
        if self.encrypted:
            files = {"ssl_ca_certs": self.tls.ca, "ssl_certfile": self.tls.certificate, "ssl_keyfile": self.tls.key}
            for path in files.values():
                if path is not None and not path.is_file():
                    raise StoreError(f"{path}: no such file; the store's tls names PEM files: ca, certificate, key.")
            found |= {"ssl": True, "ssl_check_hostname": True}
            found |= {option: str(path) for option, path in files.items() if path is not None}
        return found
