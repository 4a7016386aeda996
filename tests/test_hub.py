"""Models from the Hub and to it, against a small Hub on this machine.

The client works in one child process, since ``huggingface_hub`` reads its settings when
it is imported. The child refuses, and reports, every connection that leaves the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hub_stand_in as stand_in
import pytest
import torch
from safetensors.torch import load, save

from mtk import hub
from mtk._hub_choice import choose
from mtk.errors import UsageError
from mtk.folders import check_manifest, new_folder, put_file, write_manifest

pytest.importorskip("huggingface_hub")

CHILD = """
import json, os, sys
from pathlib import Path
away = []
def watch(event, values):
    host = ""
    if event == "socket.connect" and isinstance(values[1], tuple):
        host = values[1][0]
    elif event == "socket.getaddrinfo":
        host = values[0]
    if host not in ("", "127.0.0.1", "::1", "localhost"):
        away.append(str(host))
        raise OSError(f"the network was used: {host}")
sys.addaudithook(watch)
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1 << 12  # small files arrive in pieces too
from mtk import hub
from mtk.errors import UsageError
for line in sys.stdin:
    function, arguments, options, environment = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    os.environ.update(environment)
    if function == "fetch":
        options = {name: Path(value) for name, value in options.items()}
    else:
        arguments[0] = Path(arguments[0])
    try:
        result = getattr(hub, function)(*arguments, **options)
        if function == "fetch":
            result = [str(result.path), result.repo, result.revision, result.origin]
        reply = {"result": result}
    except UsageError as error:
        reply = {"error": str(error)}
    print(json.dumps(reply | {"away": away}), flush=True)
"""


class Client:
    """``mtk.hub`` in another process."""

    def __init__(self, home: Path, address: str, **changes: str) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("HF_") and "proxy" not in name.lower()
        } | {
            "HF_ENDPOINT": address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",  # the stand-in has large files by LFS only
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        self.log = (home / "log").open("w+")
        self._child = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment | changes,
        )

    def call(self, function: str, *arguments: str, env=None, **options) -> dict:
        asked = json.dumps([function, arguments, options, env or {}])
        self._child.stdin.write(asked + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        assert line, self.read_log()
        return json.loads(line)

    def read_log(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def close(self) -> None:
        self._child.stdin.close()
        self._child.wait(10)
        self._child.stdout.close()
        self.log.close()


@pytest.fixture(scope="module")
def place():
    """The stand-in, for all tests of this file."""
    server = stand_in.Hub()
    yield server
    server.close()


@pytest.fixture(scope="module")
def child(place, tmp_path_factory):
    client = Client(tmp_path_factory.mktemp("home"), place.address)
    yield client
    away = client.call("fetch", "hf://")["away"]
    client.close()
    assert away == []


@pytest.fixture
def server(place):
    """The stand-in, empty."""
    place.repos.clear()
    place.objects.clear()
    place.requests.clear()
    place.broken, place.said, place.before_commit = 0, "", lambda: None
    return place


@pytest.fixture
def fetch(child, tmp_path):
    def run(text: str, *, token: str = "", cache: Path = tmp_path / "cache"):
        env = {"HF_TOKEN": token} if token else {}
        reply = child.call("fetch", text, env=env, cache=str(cache))
        if "error" in reply:
            raise UsageError(reply["error"])
        path, repo, revision, origin = reply["result"]
        assert origin == f"hf://{repo}@{revision}"
        return hub.Fetched(path=Path(path), repo=repo, revision=revision)

    return run


@pytest.fixture
def push(child):
    def run(folder: Path, repo: str, *, token: str | None = stand_in.TOKEN, **options):
        reply = child.call("push", str(folder), repo, token=token, **options)
        if "error" in reply:
            raise UsageError(reply["error"])
        return reply["result"]

    return run


def weights(seed: int, size: int = 6) -> bytes:
    numbers = torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))
    return save({"model.embed_tokens.weight": numbers})


LLAMA = {
    "config.json": b'{"model_type": "llama", "hidden_size": 4, "vocab_size": 6}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "chat_template.jinja": b"{{ messages }}",
    "README.md": b"---\nlicense: mit\n---\n",
    "model.safetensors": weights(0),
}
DANGEROUS = {
    "pytorch_model.bin": b"pickle",
    "model.gguf": b"gguf",
    "modeling_own.py": b"raise SystemExit('ran')",
    "optimizer.pt": b"pickle",
    "flax_model.msgpack": b"flax",
    "tf_model.h5": b"h5",
    "onnx/model.onnx": b"onnx",
    "checkpoint-5/model.safetensors": weights(5),
    "original/params.pth": b"pickle",
}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


# --- addresses --------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "org/name",
        "meta-llama/Llama-3.2-1B",
        "org/name@main",
        "org/name@v1.0",
        "org/name@refs/pr/4",
        "hf://org/name",
        "hf://org/name@0123456789abcdef0123456789abcdef01234567",
        "hf://gpt2",
        "hf://what ever",
    ],
)
def test_what_is_an_address(text: str) -> None:
    assert hub.is_hub_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "name",
        "./org/name",
        "../name",
        "/org/name",
        "~/name",
        "org/",
        "a/b/c",
        "org/na me",
        "org/name@",
        "org/name@-x",
        "org/..",
        "org/a--b",
        "org/name.git",
        "out/merged.safetensors",
        "recipes/ties.toml",
        "https://example.org/name",
        "org/náme",
        "",
    ],
)
def test_what_is_no_address(text: str) -> None:
    assert not hub.is_hub_id(text)
    assert hub.hint(text) == ""


def test_a_local_path_is_never_an_address(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_id("models/llama")
    Path("models").mkdir()
    assert hub.is_hub_id("models/llama")
    Path("models/llama").symlink_to("nowhere")
    assert not hub.is_hub_id("models/llama")
    Path("models/old@v1").mkdir()
    assert not hub.is_hub_id("models/old@v1")


def test_the_hint_says_how_to_ask_for_the_network() -> None:
    empty, line = hub.hint("org/name@v1").split("\n")
    assert empty == ""
    assert "--hub" in line
    assert "hf://org/name@v1" in line
    assert hub.hint("hf://org/name") == ""


def test_local_paths_need_no_network_and_no_library(server, tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    code = (
        "import sys; from mtk import hub\n"
        "assert not hub.is_hub_id('org/name')\n"
        "assert hub.is_hub_id('org/other') and hub.hint('org/other')\n"
        "print('huggingface_hub' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "HF_ENDPOINT": server.address},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "False"]
    assert server.requests == []


def test_without_the_library_the_message_says_what_to_install(
    monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"mtk-core\[hub\]"):
        hub.fetch("org/name")
    with pytest.raises(UsageError, match=r"mtk-core\[hub\]"):
        hub.push(merged(tmp_path / "merged"), "org/name")


# --- what is downloaded -----------------------------------------------------------


def test_fetch_gives_what_a_merge_reads_and_nothing_else(server, fetch) -> None:
    commit = server.add("org/llama", {**LLAMA, **DANGEROUS})
    got = fetch("org/llama")
    assert (got.repo, got.revision) == ("org/llama", commit)
    assert contents(got.path) == LLAMA
    there = load((got.path / "model.safetensors").read_bytes())
    assert torch.equal(
        there["model.embed_tokens.weight"],
        load(LLAMA["model.safetensors"])["model.embed_tokens.weight"],
    )
    downloaded = "\n".join(server.asked("resolve"))
    for name in DANGEROUS:
        assert name not in downloaded


def test_a_second_fetch_asks_only_whether_the_commit_is_the_same(server, fetch) -> None:
    server.add("org/llama", LLAMA)
    first = fetch("org/llama")
    server.requests.clear()
    assert fetch("hf://org/llama") == first
    assert server.asked() == ["GET /api/models/org/llama"]
    server.requests.clear()
    assert fetch(f"org/llama@{first.revision}") == first
    assert server.asked() == []


def test_revisions_are_different_snapshots(server, fetch) -> None:
    old = server.add("org/llama", LLAMA)
    newer = {**LLAMA, "model.safetensors": weights(1)}
    new = server.repos["org/llama"].commit(newer)
    other = {**LLAMA, "model.safetensors": weights(2)}
    branch = server.repos["org/llama"].commit(other, "try/this")
    assert contents(fetch("org/llama").path) == newer
    for text, commit, files in [
        (old, old, LLAMA),
        ("main", new, newer),
        ("try/this", branch, other),
    ]:
        got = fetch(f"org/llama@{text}")
        assert got.revision == commit
        assert contents(got.path) == files


def test_shards_come_without_a_second_copy(server, fetch) -> None:
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    wanted = {
        "config.json": b"{}",
        "model-00001-of-00002.safetensors": weights(1),
        "model-00002-of-00002.safetensors": weights(2),
        "model.safetensors.index.json": index,
        "tokenizer.model": b"pieces",
        "additional_chat_templates/tools.jinja": b"{}",
    }
    left = {
        "consolidated.safetensors": weights(3),
        "consolidated.safetensors.index.json": b"{}",
        "pytorch_model.bin.index.json": b"{}",
    }
    server.add("org/mistral", {**wanted, **left})
    assert contents(fetch("org/mistral").path) == wanted


def test_a_pipeline_comes_with_its_components(server, fetch) -> None:
    wanted = {
        "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": weights(1),
        "text_encoder/config.json": b"{}",
        "text_encoder/model.safetensors": weights(2),
        "scheduler/scheduler_config.json": b"{}",
        "tokenizer/merges.txt": b"a b",
        "tokenizer/vocab.json": b"{}",
    }
    left = {
        "v1-5-pruned.safetensors": weights(3),
        "unet/diffusion_pytorch_model.fp16.safetensors": weights(4),
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "text_encoder/model.fp16-00001-of-00002.safetensors": weights(5),
        "vae_decoder/model.onnx": b"onnx",
        "preview.png": b"png",
    }
    server.add("org/pipe", {**wanted, **left})
    assert contents(fetch("org/pipe").path) == wanted


def test_which_weights_are_chosen() -> None:
    def safetensors(*names: str) -> list[str]:
        return [n for n in choose(names, "org/name") if n.endswith(".safetensors")]

    both = ["adapter_model.safetensors", "model.safetensors"]
    assert safetensors(*both, "merged.safetensors") == both
    kohya = ["style_v1.5.safetensors", "style_v2.safetensors"]
    assert safetensors(*kohya) == kohya
    only = ["model.fp16.safetensors"]
    assert safetensors(*only) == only
    nested = ["unet/pytorch_lora_weights.safetensors"]
    assert safetensors(*nested, "a/b/model.safetensors") == nested
    assert choose(["LICENSE.py", "LICENSE", *only], "org/name") == ["LICENSE", *only]


def test_strange_names_stay_exact(server, fetch) -> None:
    files = {"a[bc].safetensors": weights(1), "what?.json": b"{}", "x.json": b"1"}
    server.add("org/strange", files | {"..\\up.json": b"{}"})
    assert contents(fetch("org/strange").path) == files


def test_an_interrupted_download_goes_on_where_it_was(server, fetch) -> None:
    big = weights(3, 1 << 14)
    server.add("org/llama", {**LLAMA, "model.safetensors": big})
    server.cut.add(stand_in.sha256(big))
    got = fetch("org/llama")
    assert (got.path / "model.safetensors").read_bytes() == big
    first, second = (r.range for r in server.requests if "large" in r.path)
    assert first is None
    start = int(second.removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= len(big) // 2


def test_the_token_stays_on_the_hub(server, fetch) -> None:
    server.add("org/own", LLAMA, private=True)
    with pytest.raises(UsageError, match="does not show it") as caught:
        fetch("org/own")
    assert "hf auth login" in str(caught.value)
    fetch("org/own", token=stand_in.TOKEN)
    seen = {(r.host, r.token) for r in server.requests if "large" in r.path}
    assert seen == {("localhost", None)}


# --- what stops a download --------------------------------------------------------


def refused(call, *parts: str) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert len(message.splitlines()) == 2
    assert stand_in.TOKEN not in message
    return message


def test_repositories_without_safetensors_are_refused_by_name(server, fetch) -> None:
    server.add("org/old", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    refused(lambda: fetch("org/old"), "org/old has no safetensors", "pytorch_model.bin")
    server.add("org/empty", {"README.md": b"soon"})
    refused(lambda: fetch("org/empty"), "org/empty has no safetensors")
    half = {
        "model_index.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": weights(1),
        "vae/diffusion_pytorch_model.bin": b"pickle",
    }
    server.add("org/half", half)
    refused(lambda: fetch("org/half"), "org/half/vae has no safetensors")
    server.add("org/single", {"model_index.json": b"{}", "all.safetensors": weights(1)})
    refused(lambda: fetch("org/single"), "org/single has no safetensors")
    assert server.asked("resolve") == []


def test_the_child_notices_connections_that_leave_the_machine(tmp_path: Path) -> None:
    client = Client(tmp_path, "http://hub.invalid")
    try:
        reply = client.call("fetch", "org/llama", cache=str(tmp_path))
    finally:
        client.close()
    assert reply["away"]
    assert "http://hub.invalid" in reply["error"]


def test_missing_things_are_named(server, fetch) -> None:
    refused(lambda: fetch("org/none"), "no model org/none")
    refused(lambda: fetch("org/none", token=stand_in.TOKEN), "no model org/none")
    server.add("org/llama", LLAMA)
    refused(lambda: fetch("org/llama@v9"), "org/llama has no branch", "'v9'")
    refused(lambda: fetch(f"org/llama@{'0' * 40}"), "org/llama has no branch")
    refused(lambda: fetch("hf://org"), "no model org")
    refused(lambda: fetch("hf://a/b/c"), "'hf://a/b/c' is no address")


def test_gated_repositories(server, fetch) -> None:
    server.add("org/gated", LLAMA, gated=True)
    where = f"{server.address}/org/gated"
    refused(lambda: fetch("org/gated"), "org/gated is gated", where)
    refused(lambda: fetch("org/gated", token="hf_other"), "org/gated is gated", where)
    assert contents(fetch("org/gated", token=stand_in.TOKEN).path) == LLAMA


def test_a_server_in_trouble(server, fetch) -> None:
    server.add("org/llama", LLAMA)
    server.broken, server.said = 418, f"odd: {stand_in.TOKEN}"
    refused(lambda: fetch("org/llama"), "org/llama", "HTTP 418", "odd: hf_...")
    server.broken = 500
    refused(lambda: fetch("org/llama"), "org/llama", "HTTP 500")


def test_without_a_connection_only_complete_downloads_are_used(
    server, fetch, tmp_path: Path
) -> None:
    commit = server.add("org/llama", LLAMA)
    cache = tmp_path / "cache"
    got = fetch("org/llama", cache=cache)
    offline = Client(tmp_path, server.address, HF_HUB_OFFLINE="1")
    gone = Client(tmp_path, "http://127.0.0.1:9")  # nobody listens there
    try:
        server.requests.clear()
        for client in (offline, gone):
            for text in ("org/llama", "org/llama@main", f"org/llama@{commit}"):
                reply = client.call("fetch", text, cache=str(cache))
                assert reply["result"][0] == str(got.path)
            reply = client.call("fetch", "org/other", cache=str(cache))
            assert "out of reach" in reply["error"]
            assert len(reply["error"].splitlines()) == 2
        (got.path / "tokenizer.json").unlink()
        # (The other client would try again for 20 seconds before it says the same.)
        reply = offline.call("fetch", "org/llama", cache=str(cache))
        assert "out of reach" in reply["error"]
        assert server.requests == []
    finally:
        offline.close()
        gone.close()


# --- push -------------------------------------------------------------------------


def merged(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    """A folder as the merge command writes it."""
    with new_folder(folder) as partial:
        for name, data in (files or LLAMA).items():
            put_file(partial, name, data)
        write_manifest(partial, {"mtk": "0.1.0", "method": "linear"})
    return folder


def test_what_was_pushed_comes_back_byte_for_byte(
    server, push, fetch, tmp_path: Path
) -> None:
    folder = merged(tmp_path / "merged")
    assert push(folder, "me/merged") == f"{server.address}/me/merged"
    repo = server.repos["me/merged"]
    assert repo.private
    assert repo.messages == ["Upload a model merged by mtk"]
    head = repo.branches["main"]
    assert repo.commits[head] == stand_in.FIRST | contents(folder)
    got = fetch(f"me/merged@{head}", token=stand_in.TOKEN)
    assert contents(got.path) == contents(folder)
    assert check_manifest(got.path, contents=True)["method"] == "linear"


def test_a_pipeline_is_pushed_with_its_folders(server, push, tmp_path: Path) -> None:
    files = {
        "model_index.json": b"{}",
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": weights(1),
        "empty.txt": b"",
    }
    folder = merged(tmp_path / "merged", files)
    push(folder, "me/pipe", private=False, message="A pipeline")
    repo = server.repos["me/pipe"]
    assert not repo.private
    assert repo.messages == ["A pipeline"]
    assert repo.commits[repo.branches["main"]] == stand_in.FIRST | contents(folder)


def test_a_folder_that_is_no_complete_merge_is_not_pushed(
    server, push, tmp_path: Path
) -> None:
    def spoilt(name: str, change) -> Path:
        folder = merged(tmp_path / name)
        change(folder)
        return folder

    def flip(folder: Path) -> None:  # same size, other numbers
        (folder / "model.safetensors").write_bytes(weights(9))

    cases = {
        "manifest": lambda folder: (folder / "manifest.json").unlink(),
        "missing": lambda folder: (folder / "config.json").unlink(),
        "longer": lambda folder: (folder / "config.json").write_bytes(b"{ }" * 99),
        "flipped": flip,
        "extra": lambda folder: (folder / ".env").write_text("SECRET=1"),
        "damaged": lambda folder: (folder / "manifest.json").write_text("{"),
    }
    for name, change in cases.items():
        folder = spoilt(name, change)
        with pytest.raises(UsageError) as caught:
            push(folder, "me/merged")
        assert str(folder) in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 3
    partial = tmp_path / "merged.partial-01234567"
    merged(tmp_path / "whole").rename(partial)
    with pytest.raises(UsageError, match="interrupted"):
        push(partial, "me/merged")
    with pytest.raises(UsageError, match="not a folder"):
        push(tmp_path / "nowhere", "me/merged")
    for repo in ("merged", "hf://merged", "a/b/c"):
        with pytest.raises(UsageError, match="org/name"):
            push(tmp_path / "missing", repo)
    assert server.requests == []


def test_what_is_there_is_only_replaced_on_request(
    server, push, tmp_path: Path
) -> None:
    before = {**LLAMA, "model-00001-of-00001.safetensors": weights(7)}
    server.add("me/merged", before, private=True)
    folder = merged(tmp_path / "merged", {**LLAMA, "model.safetensors": weights(8)})
    message = refused(lambda: push(folder, "me/merged"), "overwrite=True", "me/merged")
    assert "nothing was uploaded" in message
    repo = server.repos["me/merged"]
    assert len(repo.commits) == 1
    assert server.asked("POST") == []
    push(folder, "me/merged", overwrite=True)
    # The old shard would have been loaded together with the new file.
    assert repo.commits[repo.branches["main"]] == stand_in.FIRST | contents(folder)
    assert len(repo.commits) == 2


def test_a_public_repository_is_not_filled_by_accident(
    server, push, tmp_path: Path
) -> None:
    server.add("me/open", {})
    folder = merged(tmp_path / "merged")
    refused(lambda: push(folder, "me/open"), "me/open exists and is public")
    assert server.asked("POST") == []
    push(folder, "me/open", private=False)
    assert len(server.repos["me/open"].commits) == 2


def test_a_branch_of_its_own(server, push, tmp_path: Path) -> None:
    server.add("me/merged", LLAMA, private=True)
    repo = server.repos["me/merged"]
    main = repo.branches["main"]
    folder = merged(tmp_path / "merged", {"model.safetensors": weights(4)})
    address = push(folder, "me/merged", revision="ties-0.5")
    assert address == f"{server.address}/me/merged/tree/ties-0.5"
    assert repo.branches["main"] == main
    assert repo.commits[repo.branches["ties-0.5"]] == stand_in.FIRST | contents(folder)
    refused(lambda: push(folder, "me/merged@ties-0.5"), "overwrite=True")


def test_who_may_not_write_writes_nothing(server, push, tmp_path: Path) -> None:
    folder = merged(tmp_path / "merged")
    for token in (None, "hf_aTokenWithoutRights"):
        message = refused(lambda t=token: push(folder, "me/new", token=t), "me/new")
        assert "hf_aToken" not in message
        assert "HF_TOKEN" in message
    assert "me/new" not in server.repos


def test_someone_else_was_faster(server, push, tmp_path: Path) -> None:
    server.add("me/merged", {}, private=True)
    repo = server.repos["me/merged"]
    server.before_commit = lambda: repo.commit({"theirs.txt": b"1"})
    refused(lambda: push(merged(tmp_path / "m"), "me/merged"), "HTTP 412", "refresh")
    assert repo.commits[repo.branches["main"]] == {"theirs.txt": b"1"}


def test_files_that_git_ignores_are_missed(server, push, tmp_path: Path) -> None:
    server.add("me/merged", {".gitignore": b"*.safetensors\n"}, private=True)
    folder = merged(tmp_path / "merged", {**LLAMA, ".gitignore": b"*.safetensors\n"})
    refused(
        lambda: push(folder, "me/merged", overwrite=True), "lacks model.safetensors"
    )


def test_the_token_is_written_nowhere(
    server, push, fetch, child, tmp_path: Path
) -> None:
    folder = merged(tmp_path / "merged")
    push(folder, "me/merged")
    fetch("me/merged", token=stand_in.TOKEN)
    assert stand_in.TOKEN not in child.read_log()
    secret = stand_in.TOKEN.encode()
    for data in contents(tmp_path).values():
        assert secret not in data
    repo = server.repos["me/merged"]
    assert all(
        secret not in data for data in repo.commits[repo.branches["main"]].values()
    )
