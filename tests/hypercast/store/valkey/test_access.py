"""Passwords, certificates, and settings that are refused."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hypercast.errors import StoreError
from hypercast.store.engine import UnreachableError
from hypercast.store.valkey.engine import ValkeyEngine
from streaming.config import dump, parse
from streaming.errors import ConfigError
from tests.hypercast.store.valkey.cases import FM, check, keys, put
from tests.hypercast.store.valkey_server import TlsDoor, ValkeyServer

VARIABLE = "STORE_PASSWORD"


def engine_at(url: str, **settings: object) -> ValkeyEngine:
    return ValkeyEngine.Config.model_validate({"urls": [url], "patience": 0.3, "timeout": 2.0, **settings}).build()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path_factory.mktemp("locked"), password="secret").start()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@read", "+eval")
    yield server
    server.kill()


def test_the_password_comes_from_the_environment(locked: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "secret")
    config = ValkeyEngine.Config(urls=[locked.url], password_env=VARIABLE)
    assert "secret" not in dump(config)
    engine = config.build()
    put(engine, range(3))
    check(engine.get(FM, keys(range(3))), range(3))


@pytest.mark.parametrize(
    ("password", "settings"),
    [
        ("wrong", {"password_env": VARIABLE}),
        ("secret", {}),
        ("secret", {"password_env": VARIABLE, "username": "nobody"}),
    ],
)
def test_who_may_not_is_told_at_once(
    locked: ValkeyServer, monkeypatch: pytest.MonkeyPatch, password: str, settings: dict[str, str]
) -> None:
    monkeypatch.setenv(VARIABLE, password)
    engine = engine_at(locked.url, patience=1000.0, **settings)
    with pytest.raises(StoreError, match=r"access refused.*password") as raised:
        put(engine, range(3))
    assert not isinstance(raised.value, UnreachableError) and "secret" not in str(raised.value)


def test_who_may_only_read(locked: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "secret")
    engine = engine_at(locked.url, username="reader", password_env=VARIABLE, patience=1000.0)
    assert engine.pointers() == {}
    with pytest.raises(StoreError, match="no permissions"):
        put(engine, range(3))


def test_a_password_that_is_not_there(locked: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(StoreError, match=f"environment variable {VARIABLE}.*export {VARIABLE}"):
        engine_at(locked.url, password_env=VARIABLE).snapshots()


@pytest.fixture(scope="module")
def make_certificate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Path]]:
    """Certificate and key NAME, signed by SIGNER (itself, if it is the same), for 127.0.0.1."""
    x509 = pytest.importorskip("cryptography.x509", reason="needs cryptography, to make certificates")
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder, keys_by_name = tmp_path_factory.mktemp("certificates"), {}

    def make(name: str, signer: str) -> tuple[Path, Path]:
        keys_by_name[name] = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, signer)]))
            .public_key(keys_by_name[name].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - timedelta(days=1))
            .not_valid_after(datetime.now(UTC) + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == signer, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .sign(keys_by_name[signer], hashes.SHA256())
        )
        paths = folder / f"{name}.crt", folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            keys_by_name[name].private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return paths

    return make


def test_tls(make_certificate: Callable[[str, str], tuple[Path, Path]], valkey_server: ValkeyServer) -> None:
    ca, _ = make_certificate("ca", "ca")
    stranger, _ = make_certificate("stranger", "stranger")
    (certificate, key), (own, own_key) = make_certificate("server", "ca"), make_certificate("client", "ca")
    door = TlsDoor(port=valkey_server.port, certificate=certificate, key=key, ca=ca)
    try:
        url, pair = f"valkeys://127.0.0.1:{door.port}", {"certificate": str(own), "key": str(own_key)}
        engine = engine_at(url, prefix="tls", tls={"ca": str(ca), **pair})
        put(engine, range(300))
        check(engine.get(FM, keys(range(300))), range(300))
        started = time.monotonic()
        for tls in ({"ca": str(stranger), **pair}, pair):
            with pytest.raises(StoreError, match="certificate is not accepted"):
                engine_at(url, tls=tls, patience=1000.0).snapshots()
        assert time.monotonic() - started < 500  # it did not wait for that to pass
        for refused in (engine_at(url, tls={"ca": str(ca)}), engine_at(f"valkey://127.0.0.1:{door.port}")):
            with pytest.raises(UnreachableError, match=f"127.0.0.1:{door.port}"):
                refused.snapshots()
        with pytest.raises(StoreError, match=r"missing\.pem: no such file"):
            engine_at(url, tls={"ca": "missing.pem"}).snapshots()
    finally:
        door.close()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"prefix": "../x"}, "prefix"),
        ({"prefix": "a{b}"}, "prefix"),
        ({"prefix": "a*"}, "prefix"),
        ({"prefix": "a\n"}, "prefix"),
        ({"prefix": ""}, "prefix"),
        ({"urls": []}, "urls"),
        ({"urls": ["http://127.0.0.1"]}, "valkey://HOST"),
        ({"urls": ["valkey://"]}, "valkey://HOST"),
        ({"urls": ["valkey://user:word@127.0.0.1"]}, "password_env"),
        ({"urls": ["valkey://127.0.0.1:99999"]}, "Port out of range"),
        ({"urls": ["valkey://127.0.0.1/a"]}, "database"),
        ({"urls": ["valkey://127.0.0.1/1"], "cluster": True}, "database"),
        ({"urls": ["valkey://a", "valkey://b"]}, "cluster: true"),
        ({"urls": ["valkey://a", "valkeys://b"], "cluster": True}, "over TLS"),
        ({"tls": {"ca": "x"}}, "valkeys://"),
        ({"urls": ["valkeys://a"], "tls": {"key": "x"}}, "both or neither"),
        ({"password": "x"}, "password"),
        ({"patience": -1}, "patience"),
        ({"batch": 0}, "batch"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse(values, ValkeyEngine.Config, source="store.yaml")


def test_a_database_of_its_own(valkey_server: ValkeyServer) -> None:
    engine, other = (engine_at(f"{valkey_server.url}/{database}", prefix="numbered") for database in (1, 2))
    put(engine, range(3))
    assert engine.snapshots() == [FM] and other.snapshots() == []
