"""Downloading from a hub on this machine that behaves, is gated, breaks off or is not there."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

from client.errors import ClientError
from client.weights import REPOSITORY, REVISION, check_weights, fetch_weights

SHARD_BYTES = 200_000


def shard() -> bytes:
    """A safetensors file of one tensor."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [SHARD_BYTES], "data_offsets": [0, SHARD_BYTES]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(SHARD_BYTES)


@dataclass
class Hub:
    """One repository; `refusal` is its error for files, `break_after` cuts the shard once after so many bytes."""

    address: str = ""
    refusal: tuple[int, str] | None = None
    break_after: int | None = None
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    files: dict[str, bytes] = field(
        default_factory=lambda: {
            "config.json": b"{}",
            "tokenizer.json": b"{}",
            "tokenizer_config.json": b"{}",
            "preprocessor_config.json": b"{}",
            "chat_template.jinja": b"hello",
            "model.safetensors.index.json": b'{"weight_map": {"x": "model-1.safetensors"}}',
            "model-1.safetensors": shard(),
            "modeling_chroma.py": b"raise SystemExit",
            "pytorch_model.bin": b"pickle",
            "weights.pt": b"pickle",
            "example/prompt.json": b"{}",
            "README.md": b"hello",
        }
    )

    def asked(self, method: str, name: str) -> list[str]:
        """Ranges that were asked of a file."""
        return [span for verb, path, span in self.requests if verb == method and path.endswith(f"/{name}")]


class HubHandler(BaseHTTPRequestHandler):
    """The part of the hub's interface that a download uses."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        """As GET, without the content."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answers from the repository."""
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if not path.removeprefix("/api/models").startswith(f"/{REPOSITORY}/"):
            self.refuse(404, "RepoNotFound")
        elif REVISION not in path:
            self.refuse(404, "RevisionNotFound")
        elif "/tree/" in path:
            self.answer(json.dumps([self.entry(name) for name in self.hub.files]).encode())
        elif self.hub.refusal:
            self.refuse(*self.hub.refusal)
        else:
            self.send_file(path.split(f"/resolve/{REVISION}/", 1)[1])

    def entry(self, name: str) -> dict[str, Any]:
        """A file in the listing."""
        content = self.hub.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def send_file(self, name: str) -> None:
        """A file, or the rest of one, or the part of it after which the line breaks."""
        content = self.hub.files[name]
        start = int(match[1]) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        rest = content[start:]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.hub.break_after if name.endswith(".safetensors") and self.command == "GET" else None
        if cut is not None and not start:
            self.answer(rest, sent=cut, **headers)
            self.close_connection = True
        else:
            self.answer(rest, status=206 if start else 200, **headers)

    def refuse(self, status: int, code: str) -> None:
        """An error as the hub says it."""
        self.answer(b"{}", status=status, **{"X-Error-Code": code, "X-Error-Message": code})

    def answer(self, content: bytes, *, status: int = 200, sent: int | None = None, **headers: str) -> None:
        """One response."""
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:sent])

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the test's output is not the hub's."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Hub]:
    """A hub that listens on this machine."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)  # before it tries again
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(HubHandler, hub)) as server:
        server.daemon_threads = True
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield hub
        server.shutdown()
        thread.join()


def fetch(hub: Hub, folder: Any, **changes: Any) -> None:
    """Downloads with the defaults of the command."""
    wanted = {"repository": REPOSITORY, "revision": REVISION, "token": "hf_test", "endpoint": hub.address}
    fetch_weights(folder, **(wanted | changes))


def test_the_checkpoint_is_fetched_and_no_code(hub, tmp_path):
    fetch(hub, tmp_path / "weights")
    fetched = {path.name for path in (tmp_path / "weights").iterdir() if path.is_file()}
    assert fetched == set(hub.files) - {
        "modeling_chroma.py",
        "pytorch_model.bin",
        "weights.pt",
        "README.md",
        "example/prompt.json",
    }
    assert check_weights(tmp_path / "weights").weight_bytes == SHARD_BYTES
    hub.requests.clear()
    fetch(hub, tmp_path / "weights")
    assert not hub.asked("GET", "model-1.safetensors")


def test_a_download_that_broke_off_goes_on_where_it_was(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.break_after = 50_000
    fetch(hub, tmp_path)
    ranges = hub.asked("GET", "model-1.safetensors")
    assert ranges[0] == ""
    assert "bytes=50000-" in ranges[1]
    assert check_weights(tmp_path).tensor_count == 1


def test_after_a_download_that_failed_the_rest_is_fetched(hub, tmp_path):
    hub.break_after = 50_000
    with pytest.raises(ClientError, match=r"the download stopped.*run this again for the rest"):
        fetch(hub, tmp_path)
    hub.break_after = None
    hub.requests.clear()
    fetch(hub, tmp_path)
    assert hub.asked("GET", "model-1.safetensors")
    assert not hub.asked("GET", "config.json")
    assert check_weights(tmp_path).tensor_count == 1


def test_a_gated_repository_says_what_to_do(hub, tmp_path):
    hub.refusal = (403, "GatedRepo")
    with pytest.raises(ClientError, match="is gated: accept its conditions") as caught:
        fetch(hub, tmp_path)
    for word in (f"https://huggingface.co/{REPOSITORY}", "token", "HF_TOKEN"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("refusal", "said"),
    [((401, "Unauthorized"), "refused the token|no repository"), ((403, "Forbidden"), "refused the token")],
)
def test_a_wrong_token_is_said(hub, tmp_path, refusal, said):
    hub.refusal = refusal
    with pytest.raises(ClientError, match=said):
        fetch(hub, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"repository": "nobody/nothing"}, "no repository nobody/nothing"),
        ({"revision": "1" * 40}, "has no revision 111"),
        ({"revision": "main"}, "has no revision main"),
        ({"repository": "not a name"}, "not a name"),
    ],
)
def test_a_wrong_name_is_said(hub, tmp_path, changes, said):
    with pytest.raises(ClientError, match=said):
        fetch(hub, tmp_path, **changes)


def test_a_hub_that_is_not_there_is_said(hub, tmp_path, free_address):
    with pytest.raises(ClientError, match="run this again for the rest") as caught:
        fetch(hub, tmp_path, endpoint=f"http://{free_address}")
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_a_file_is_said(hub, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClientError, match="file"):
        fetch(hub, tmp_path / "file")


def test_a_damaged_file_is_found_and_fetched_again_once_deleted(hub, tmp_path):
    fetch(hub, tmp_path)
    damaged = tmp_path / "model-1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ClientError, match=r"model-1.safetensors is cut short.*Delete the files") as caught:
        check_weights(tmp_path)
    assert caught.value.exit_status == 1
    damaged.unlink()
    fetch(hub, tmp_path)
    assert check_weights(tmp_path).tensor_count == 1


def test_a_repository_that_is_not_a_checkpoint_is_found(hub, tmp_path):
    hub.files["model-1.safetensors"] = b"<html>"
    del hub.files["tokenizer.json"]
    fetch(hub, tmp_path)
    with pytest.raises(ClientError, match=r"tokenizer.json is missing; model-1.safetensors is cut short or not"):
        check_weights(tmp_path)


async def test_the_command_names_the_folder_or_the_remedy(hub, tmp_path, cli):
    arguments = ("weights", "--to", str(tmp_path / "weights"))
    result = await cli(*arguments, HF_ENDPOINT=hub.address, HF_TOKEN="hf_test")
    assert result.status == 0, result.err
    assert "1 tensors in 1 files" in result.out
    assert "chroma-mesh up --checkpoint" in result.out
    hub.refusal = (403, "GatedRepo")
    result = await cli("weights", "--to", str(tmp_path / "other"), HF_ENDPOINT=hub.address)
    assert result.status == 1
    assert "is gated" in result.err
    assert "Traceback" not in result.err
