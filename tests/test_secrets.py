"""Secrets of URLs: hidden in every text, and in all that commands print and write."""

import json
import logging
import os
import subprocess
import sys

import pytest

from dsgen import secrets
from dsgen.cli.results import as_dict, to_json
from dsgen.errors import DsgenError, NotFoundError, reason_of
from dsgen.io.filesystem import open_files
from dsgen.secrets import hide_secrets, note_secrets
from dsgen.store.packing import pack
from dsgen.store.reader import Store
from dsgen.views.info import describe

SECRET = "S3CRETpw"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Forget the secrets of a test, whose words may occur in others."""
    monkeypatch.setattr(secrets, "_known", set())


@pytest.mark.parametrize("quote", ["'", '"', " ", "<", "`"])
def test_a_noted_secret_may_hold_what_ends_a_url_in_a_text(quote):
    """Where the whole location is known, nothing in it ends it."""
    url = f"zip://a::http://me:S3CR{quote}ETpw@host/x?token=A1B2{quote}C3D4"
    note_secrets(url)
    for text in (url, f"error: {url.replace('//', '/')}: gone"):
        assert "S3CR" not in hide_secrets(text)
        assert "ETpw" not in hide_secrets(text)
        assert "A1B2" not in hide_secrets(text)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("s3://KEY:SECRET@bucket/x", "s3://***@bucket/x"),
        ("s3://KEY:SEC/RE+T@bucket/x: gone", "s3://***@bucket/x: gone"),
        ("http://user:p@ss@host:80/a", "http://***@host:80/a"),
        ("url='https://token@host/x'", "url='https://***@host/x'"),
        ("https://h/x?X-Amz-Signature=abc&t=1 more", "https://h/x?X-Amz-Signature=***&t=*** more"),
        ("https://h/x?abcdef", "https://h/x?***"),
        ("https://h/x#access_token=1", "https://h/x#access_token=***"),
        ("simplecache::s3://K:S@b/x", "simplecache::s3://***@b/x"),
        ("zip://a::http://u:pw@h/y", "zip://a::http://***@h/y"),
        ("http:/u:SECRET@h/x: no such folder", "http:/***@h/x: no such folder"),
        ("s3:/KEY:SEC/RET@b; see http://u:pw@h", "s3:/***@b; see http://***@h"),
        ("http://host:9000/a@b", "http://host:9000/a@b"),
        ("c:/a@b and s3:/bucket/a:b@c", "c:/a@b and s3:/bucket/a:b@c"),
        ("shards: no store; run dsgen pack", "shards: no store; run dsgen pack"),
    ],
)
def test_what_is_secret_of_a_url_is_hidden(text, hidden):
    """User, password and query go; host, port and path stay."""
    assert hide_secrets(text) == hidden


def test_errors_and_log_records_hide_secrets(caplog):
    """Every field of an error, with the texts of others in it, and what is logged."""
    note_secrets(f"https://me:{SECRET}@host/a?sig=abcdef%2F12")
    error = DsgenError(f"http://me:{SECRET}@host/x", f'invalid name "me:{SECRET}@host"', f"see http://h?sig={SECRET}")
    assert SECRET not in str(error) + error.what + error.reason + error.remedy
    assert "abcdef/12" not in reason_of(ValueError("bad abcdef/12 or abcdef%2F12"))
    with caplog.at_level(logging.INFO, "dsgen"):
        logging.getLogger("dsgen").info("reading %s", f"http://me:{SECRET}@host/x")
    assert caplog.messages == ["reading http://***@host/x"]


def test_keys_in_an_s3_url_are_refused_without_connecting():
    """No library reads them there."""
    with pytest.raises(DsgenError, match=r"^s3://\*\*\*@bucket/x: got keys in the URL, expected s3://BUCKET/PATH"):
        open_files(f"s3://KEY:{SECRET}@bucket/x").read("a")


def test_a_url_with_a_password_is_shown_without_it(tmp_path, labelled_corpus):
    """A store at such a URL is opened and read; results, files and errors do not show the password."""
    url = f"memory://me:{SECRET}@secret/store"
    pack(labelled_corpus, tmp_path / "store", shards=1, jobs=1)
    local, remote = open_files(tmp_path / "store"), open_files(url)
    for name in local.sizes():
        remote.write(name, local.read(name))
    assert SECRET not in to_json(as_dict(describe(url))) + str(remote)
    store = Store(url)
    assert store.read(0, 4)["image"].shape == (4, 48, 48, 3)
    with pytest.raises(NotFoundError) as caught:
        Store(url + "2")
    assert SECRET not in str(caught.value)


_RUN_ALL = """
import json, sys
from dsgen.cli.app import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["dsgen", *arguments, "--json", "--verbose"]
    try:
        main()
    except SystemExit as error:
        assert error.code in (1, 2), arguments
"""


def test_no_command_prints_or_writes_a_secret(tmp_path):
    """Whatever commands say of a URL they cannot use, of an endpoint, and of a wrong option, says nothing secret."""
    urls = [
        f"http://me:{SECRET}@127.0.0.1:9/x?X-Amz-Signature={SECRET}",
        f"s3://KEY:{SECRET}@bucket/x",
        f"http://me:'{SECRET} @127.0.0.1:9/x",
    ]
    commands = [
        [*command[:1], url, *command[1:]]
        for command in (
            ["info"],
            ["verify"],
            ["preview"],
            ["report"],
            ["view"],
            ["train"],
            ["export", "out"],
            ["repair"],
        )
        for url in urls
    ]
    commands.append(["info", "s3://bucket/x", "--endpoint", f"ftp://me:{SECRET}@127.0.0.1:9"])
    commands.append(["train", "--epochs", urls[0]])
    commands += [["depth", url] for url in urls]
    commands.append([f"--endpoint=http://me:'{SECRET}@127.0.0.1:9"])
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ALL, json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_MAX_ATTEMPTS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "***@" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert not any(SECRET.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert [set(json.loads(line)) for line in done.stdout.splitlines()] == [{"error"}] * len(commands)
