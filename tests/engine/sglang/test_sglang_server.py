"""`python -m npr_lib serve` and its clients: SGLangEngine(url=...), an OpenAI-compatible one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil
import pytest
from sglang_engines import CHECKS, TOKENIZER, model_of_type, written_by_policy
from test_engine_oracle import check_against_dense

from npr_lib.engine import EngineConfig, Finish, SamplingParams, SGLangEngine, Token, TorchEngine
from npr_lib.reasoning.tokens import encode

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
CONFIG = EngineConfig(num_slots=2048, max_depth=2)
MODEL = model_of_type("llama")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server on a free port; its whole process tree is gone afterwards."""
    folder = tmp_path_factory.mktemp("model")
    MODEL.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    options = ["--max-total-tokens", "2048", "--context-length", "4096", "--port", port]
    log = (folder / "server.log").open("w+")
    server = subprocess.Popen(
        [sys.executable, "-m", "npr_lib", "serve", str(folder), *options],
        env={**os.environ, **CHECKS},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(address, server, log)
        yield address
    finally:
        tree = [server]
        if server.poll() is None:
            tree += psutil.Process(server.pid).children(recursive=True)
        for process in reversed(tree):
            process.send_signal(signal.SIGKILL)
        server.wait()
        psutil.wait_procs(tree[1:], timeout=20)
        log.close()


def wait_until_ready(address, server, log):
    deadline = time.monotonic() + 300
    while True:
        try:
            with urlopen(address + "/health", timeout=20) as answer:
                assert answer.status == 200
                return
        except (URLError, ConnectionError, TimeoutError):
            if server.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                pytest.fail(f"the server did not come up: {log.read()[-3000:]}")
            time.sleep(1)


def post(url, body):
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def test_the_client_of_a_server_is_an_engine(url, monkeypatch):
    engine = SGLangEngine(url=url, config=CONFIG)
    trajectories = written_by_policy(MODEL, monkeypatch, 1, CONFIG, {"max_tokens": 150}, n=2)
    replayed = engine.replay_all(trajectories, "parallel")
    assert max(check_against_dense(MODEL, t) for t in replayed) > 0.1
    assert [t.layout for t in replayed] == [t.layout for t in trajectories]
    params = SamplingParams(max_tokens=30, seed=2)
    ours = TorchEngine(MODEL, TOKENIZER, CONFIG).generate(["A=1+2", "B"], params, n=3)
    theirs = engine.generate(["A=1+2", "B"], params, n=3)
    assert [t.completion_ids for t in theirs] == [t.completion_ids for t in ours]
    assert engine.report()["num_used"] == 0
    engine.weights_changed()
    assert engine.report()["num_cached"] == 0


def test_a_stream_from_a_server(url):
    engine = SGLangEngine(url=url, config=CONFIG)
    params = SamplingParams(max_tokens=30, seed=4)
    expected = engine.generate(["A=1+2", "B"], params, n=2)
    events = list(engine.stream(["A=1+2", "B"], params, n=2))
    ended = {e.index: e.trajectory for e in events if isinstance(e, Finish)}
    assert [ended[i].completion_ids for i in range(4)] == [t.completion_ids for t in expected]
    told = [e.token for e in events if isinstance(e, Token) and e.index == 0]
    assert told[: expected[0].work] == expected[0].completion_ids
    stream = engine.stream(["A=1+2"] * 4, SamplingParams(max_tokens=1500))
    next(stream)
    stream.close()
    deadline = time.monotonic() + 60
    while engine.report()["families"] and time.monotonic() < deadline:
        time.sleep(0.5)
    assert engine.report()["families"] == 0


def test_weights_through_a_folder(url):
    other = type(MODEL)(MODEL.config).eval()
    engine = SGLangEngine(url=url, config=CONFIG, model=other)
    try:
        engine.weights_changed()
        for t in engine.generate(["A=1+2"], SamplingParams(max_tokens=30), n=2):
            check_against_dense(other, t)
    finally:
        engine.follow(MODEL)
        engine.weights_changed()


def test_what_cannot_be_served_is_refused_with_its_reason(url):
    engine = SGLangEngine(url=url, config=CONFIG)
    with pytest.raises(ValueError, match="need 2102 slots, the pool has 2048"):
        engine.generate([[20, 21]], SamplingParams(max_tokens=2100))
    body = {"input_ids": [20], "sampling_params": {"custom_params": {"npr": {"speed": 3}}}}
    with pytest.raises(Exception, match="400"):
        post(url + "/generate", body)


@pytest.mark.parametrize("style", ["compact", "lines"])
def test_an_openai_client_gets_the_whole_text(url, style, monkeypatch):
    """Streamed or not: the text with its tags, in the final order of the tokens."""
    config = replace(CONFIG, style=style)
    trajectories = written_by_policy(MODEL, monkeypatch, 2, config, {"max_tokens": 250}, n=2)
    t = max((t for t in trajectories if t.finish_reason == "stop"), key=lambda t: t.work)
    assert t.num_branches
    engine = SGLangEngine(url=url, config=CONFIG)
    from npr_lib.engine.sglang.wire import pack

    body = {
        "model": "default",
        "prompt": t.prompt_ids,
        "max_tokens": t.work,
        "custom_params": pack(engine.replay_settings(t, "parallel")),
    }
    answer = json.loads(post(url + "/v1/completions", body))
    assert answer["choices"][0]["text"] == t.text
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == t.work
    lines = post(url + "/v1/completions", {**body, "stream": True}).splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == t.text
    assert len(chunks) > 5, "the stream came in one piece"


def test_samples_of_a_plain_client_differ(url):
    """n samples, no key of their own, no seed; and the same ones again with a seed."""
    body = {"model": "default", "prompt": [20, 21], "max_tokens": 20, "n": 3}
    body["custom_params"] = {"npr": "parallel"}
    texts = [c["text"] for c in json.loads(post(url + "/v1/completions", body))["choices"]]
    assert len(set(texts)) == 3
    seeded = [post(url + "/v1/completions", {**body, "n": 1, "seed": 7}) for _ in range(2)]
    first, again = (json.loads(answer)["choices"][0]["text"] for answer in seeded)
    assert first == again


def test_ordinary_requests_beside(url):
    body = {"input_ids": encode("A=1", TOKENIZER), "sampling_params": {"max_new_tokens": 5}}
    answer = json.loads(post(url + "/generate", body))
    assert len(answer["output_ids"]) <= 5
    assert "npr" not in answer["meta_info"]
