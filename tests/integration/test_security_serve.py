"""`tensorbus serve` and `tensorbus token` as processes: who gets in, and what the audit log says."""

# safetensors leaves parts of its functions untyped.
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import trustme
from safetensors.numpy import load_file, save_file

TENSORBUS = (sys.executable, "-m", "tensorbus")


def run(*arguments: str, code: int = 0, where: Mapping[str, str] | None = None) -> str:
    """The standard output of a command, which must end with ``code``."""
    done = subprocess.run(
        (*TENSORBUS, *arguments),
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | (where or {}),
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


@contextmanager
def serving(data: Path, *options: str) -> Generator[tuple[str, subprocess.Popen[str]]]:
    """A broker process on a free port; yields its URL once it is ready."""
    command = (*TENSORBUS, "serve", "--port", "0", "--data", str(data), "--json", *options)
    with (
        (data.parent / "serve.log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"], process
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def ask(
    url: str, token: str | None = None, method: str = "GET", data: bytes | None = None
) -> tuple[int, Any]:
    """Status and JSON of a request."""
    request = Request(url, data=data, method=method)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urlopen(request) as answer:
            body = answer.read()
            return answer.status, json.loads(body) if body else None
    except HTTPError as error:
        return error.code, json.loads(error.read())


def make(data: Path, name: str, *rights: str) -> tuple[str, str]:
    """Id and text of a new token."""
    made = json.loads(run("token", "create", name, *rights, "--data", str(data), "--json"))
    return made["id"], made["token"]


def test_tokens_from_the_command_line(tmp_path: Path) -> None:
    """Made and revoked beside a running broker, which takes notice at once; listed without a secret."""
    data = tmp_path / "data"
    text = run(
        "token", "create", "site-a", "--publish", "a.b", "--expires", "1h", "--data", str(data)
    ).strip()
    assert re.fullmatch(r"tb_[0-9a-f]{12}_[0-9a-f]{64}", text)
    with serving(data) as (url, _):
        assert ask(f"{url}/v1/topics/a.b/messages", text, "POST", b"x")[0] == 201
        assert ask(f"{url}/v1/topics/a.c/messages", text, "POST", b"x")[0] == 403
        assert ask(f"{url}/v1/messages")[0] == 401
        other, later = make(data, "later", "--subscribe", ">")
        assert [info["topic"] for info in ask(f"{url}/v1/messages", later)[1]["messages"]] == ["a.b"]
        run("token", "revoke", other, "--data", str(data))
        assert ask(f"{url}/v1/messages", later)[0] == 401
        # The same over HTTP, for whoever runs the broker from elsewhere.
        _, root = make(data, "root", "--admin", ">")
        made = json.loads(
            run(
                "token",
                "create",
                "far",
                "--admin",
                "a.>",
                "--json",
                "--url",
                url,
                where={"TENSORBUS_TOKEN": root},
            )
        )
        assert ask(f"{url}/v1/messages", made["token"])[0] == 200
        listed = run("token", "list", "--url", url, "--token", root)
        assert "far" in listed and "site-a" in listed
        run("token", "revoke", made["id"], "--url", url, "--token", root)
        assert ask(f"{url}/v1/messages", made["token"])[0] == 401
        assert "admin" in run("token", "list", "--url", url, "--token", text, code=1)
    listed = run("token", "list", "--data", str(data), "--json")
    assert [json.loads(line)["name"] for line in listed.splitlines()] == ["site-a", "root"]
    for secret in (text, later, root, made["token"]):
        assert secret.rpartition("_")[2] not in listed + (tmp_path / "serve.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["create", "a"], 2),
        (["create", "a b", "--admin", ">"], 1),
        (["create", "a", "--admin", "a..b"], 1),
        (["create", "a", "--admin", ">", "--expires", "soon"], 2),
        (["create", "a", "--admin", ">", "--max-bytes", "much"], 2),
        (["revoke", "0" * 12], 4),
        (["revoke", "../tokens"], 1),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, arguments: list[str], code: int) -> None:
    """No token is made by a typo."""
    assert run("token", *arguments, "--data", str(tmp_path), code=code)
    assert run("token", "list", "--data", str(tmp_path), "--json") == ""


def test_without_tokens_only_this_machine_is_served(tmp_path: Path) -> None:
    """It says so, and how to make a token; with one it may listen everywhere."""
    data = tmp_path / "data"
    with serving(data):
        pass
    said = (tmp_path / "serve.log").read_text()
    assert "tensorbus token create" in said and "this machine" in said
    everywhere = ("serve", "--host", "0.0.0.0", "--port", "0", "--data", str(data))
    said = run(*everywhere, code=1)
    assert "tensorbus token create" in said and "--allow-remote" in said
    make(data, "root", "--admin", ">")
    with serving(data, "--host", "0.0.0.0") as (url, _):
        port = url.rpartition(":")[2]
        assert ask(f"http://127.0.0.1:{port}/v1/messages")[0] == 401
    assert "--tls-cert" in (tmp_path / "serve.log").read_text()


def test_tokens_that_cannot_be_read_stop_the_start(tmp_path: Path) -> None:
    """A broker does not start without knowing whom to let in."""
    make(tmp_path, "root", "--admin", ">")
    (tmp_path / "tokens.json").write_text("{")
    assert "tokens.json" in run("serve", "--port", "0", "--data", str(tmp_path), code=1)


# --- the audit log -----------------------------------------------------------------------------------


def entries(path: Path) -> list[dict[str, Any]]:
    """What an audit log holds."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_audit_log_says_who_did_what(tmp_path: Path) -> None:
    """One JSON line for each change and refusal: token, peer, object, message and outcome; no secret."""
    data, path = tmp_path / "data", tmp_path / "audit.log"
    writer, text = make(data, "site-a", "--publish", "a")
    root, admin = make(data, "root", "--admin", ">")
    with serving(data, "--audit-log", str(path)) as (url, process):
        message = ask(f"{url}/v1/topics/a/messages", text, "POST", b"x")[1]["id"]
        ask(f"{url}/v1/messages/{message}", text)  # hidden from it
        ask(f"{url}/v1/topics/b/messages", text, "POST", b"x")
        ask(f"{url}/v1/topics/a/messages", None, "POST", b"x")
        ask(f"{url}/v1/messages", admin)  # reading is not told
        ask(f"{url}/v1/consumers/c", admin, "PUT", b'{"filter": "a"}')
        ask(f"{url}/v1/consumers/c/deliveries", admin, "POST", b'{"wait": 0}')  # nor is consuming
        ask(f"{url}/v1/policies/p", admin, "PUT", b'{"filter": "a", "max_messages": 5}')
        ask(f"{url}/v1/policies/p", admin, "DELETE")
        ask(f"{url}/v1/messages/{message}", admin, "DELETE")
        made = ask(f"{url}/v1/tokens", admin, "POST", b'{"name": "x", "publish": ["a"]}')[1]
        ask(f"{url}/v1/tokens/{made['id']}", admin, "DELETE")
        run("token", "revoke", writer, "--data", str(data))
        ask(f"{url}/v1/topics/a/messages", text, "POST", b"x")
        # Renamed by whoever keeps logs, and gone on with in a new file.
        before = entries(path)
        moved = path.rename(tmp_path / "audit.log.1")
        process.send_signal(signal.SIGHUP)
        while not path.exists():
            ask(f"{url}/healthz")
        ask(f"{url}/v1/policies/q", admin, "PUT", b'{"filter": "b", "max_messages": 5}')
        assert entries(moved) == before
        [last] = entries(path)
    assert (last["action"], last["object"]) == ("policy.put", {"name": "q"})
    assert path.stat().st_mode & 0o777 == 0o600
    told = [(entry["action"], entry["outcome"], entry.get("token")) for entry in before]
    assert told == [
        ("message.publish", "done", writer),
        ("GET /v1/messages/{id}", "refused", writer),
        ("message.publish", "refused", writer),
        ("message.publish", "refused", None),
        ("consumer.create", "done", root),
        ("policy.put", "done", root),
        ("policy.delete", "done", root),
        ("message.delete", "done", root),
        ("token.create", "done", root),
        ("token.revoke", "done", root),
        ("tokens.changed", "done", None),
        ("message.publish", "refused", None),
    ]
    first, deletion, creation, changed = before[0], before[7], before[8], before[10]
    assert (first["name"], first["peer"], first["message"]) == ("site-a", "127.0.0.1", message)
    assert first["object"] == {"topic": "a"} and first["status"] == 201
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first["time"])
    assert deletion["object"] == {"id": message}
    assert creation["created"] == made["id"] and creation["rights"]["publish"] == ["a"]
    assert changed["removed"] == [writer] and changed["added"] == []
    for secret in (text, admin, made["token"]):
        assert secret.rpartition("_")[2] not in path.read_text() + json.dumps(before)


def test_an_audit_log_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    """Whoever asks for one gets one, or no broker."""
    said = run(
        "serve",
        "--port",
        "0",
        "--data",
        str(tmp_path / "d"),
        "--audit-log",
        str(tmp_path / "no" / "log"),
        code=1,
    )
    assert "audit log" in said


# --- TLS ---------------------------------------------------------------------------------------------


def test_https_with_certificates_that_are_renewed(tmp_path: Path) -> None:
    """The commands speak TLS; a client's name is in the audit log; SIGHUP takes a new certificate."""
    authority = trustme.CA()
    ca, cert, own = (str(tmp_path / name) for name in ("ca.pem", "server.pem", "client.pem"))
    authority.cert_pem.write_to_path(ca)
    client = authority.issue_cert("site-a.example.org", common_name="site-a")
    client.private_key_and_cert_chain_pem.write_to_path(own)
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(cert)
    data, log = tmp_path / "data", tmp_path / "audit.log"
    _, token = make(data, "root", "--admin", ">")
    options = ("--tls-cert", cert, "--tls-client-ca", ca, "--audit-log", str(log))
    with serving(data, *options) as (url, process):
        assert url.startswith("https://127.0.0.1:")
        where = {"TENSORBUS_URL": url, "TENSORBUS_TOKEN": token, "TENSORBUS_TLS_CA": ca}
        weights = {"w": np.random.default_rng(1).standard_normal(1_000_000)}
        save_file(weights, tmp_path / "model.safetensors")
        shown = run(
            "publish",
            "a",
            str(tmp_path / "model.safetensors"),
            "--json",
            where=where | {"TENSORBUS_TLS_CERT": own},
        )
        got = tmp_path / "got.safetensors"
        run("fetch", json.loads(shown)["id"], "-o", str(got), "--tls-cert", own, where=where)
        assert np.array_equal(load_file(got)["w"], weights["w"])
        assert "certificate" in run("topics", code=1, where=where)
        assert entries(log)[0]["subject"] == "site-a"

        def serial() -> str:
            context = ssl.create_default_context(cafile=ca)
            context.load_cert_chain(own)
            port = int(url.rpartition(":")[2])
            with (
                socket.create_connection(("127.0.0.1", port)) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
            ):
                return str((secure.getpeercert() or {})["serialNumber"])

        before = serial()
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(cert)
        process.send_signal(signal.SIGHUP)
        while serial() == before:
            pass
