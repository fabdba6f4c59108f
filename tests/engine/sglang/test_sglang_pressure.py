"""SGLang with too little room, aborts in the middle, few requests at once: nothing is lost."""

import asyncio
import random

import pytest
from sglang_engines import model_of_type, sglang_engine, written_by_policy
from test_engine_oracle import check_against_dense

from npr_lib.engine import EngineConfig
from npr_lib.engine.sglang.wire import KEY, from_wire, pack

pytestmark = pytest.mark.slow
MODEL = model_of_type("qwen3")


async def run_all(engine, requests, rng, abort_share):
    """Send all (prompt ids, sampling parameters) within two seconds, withdrawing some on the way:
    (outputs, the withdrawn indices). A watchdog proves progress: some request ends at least every
    60 seconds."""
    sglang = engine.backend.engine
    manager = sglang.tokenizer_manager
    aborted = {i for i in range(len(requests)) if rng.random() < abort_share}
    ended = 0

    async def one(index, prompt, sampling):
        nonlocal ended
        await asyncio.sleep(rng.random() * 2)
        call = sglang.async_generate(
            input_ids=prompt, sampling_params=sampling, rid=f"request-{index}-"
        )
        task = asyncio.create_task(call)
        if index in aborted:
            await asyncio.sleep(rng.random())
            manager.abort_request(f"request-{index}-")
        output = await task
        ended += 1
        return output

    work = asyncio.gather(*(one(i, *request) for i, request in enumerate(requests)))
    while not work.done():
        before = ended
        await asyncio.wait([work], timeout=60)
        assert work.done() or ended > before, f"no progress: {ended} of {len(requests)} ended"
    return work.result(), aborted


def replay(engine, t, mode="parallel"):
    settings = engine.replay_settings(t, mode)
    return t.prompt_ids, {"max_new_tokens": t.work, "custom_params": pack(settings)}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "running, chunk, style", [(3, -1, "compact"), (12, 16, "compact"), (5, 9, "lines")]
)
def test_three_hundred_requests_in_a_small_pool(running, chunk, style, monkeypatch, tmp_path):
    """With SGLang's strict memory checks on (see CHECKS): any leak ends the test. SGLang is told
    to admit requests as if they hardly needed room, so that they get in each other's way."""
    config = EngineConfig(max_depth=2, style=style)
    rng = random.Random(7)
    trajectories = []
    for seed in range(25):
        params = {"max_tokens": rng.choice([60, 120, 200]), "max_span": rng.choice([None, 60])}
        trajectories += written_by_policy(MODEL, monkeypatch, seed, config, params, n=3)
    assert len(trajectories) == 300
    slots = int(1.3 * max(len(t.prompt_ids) + t.work for t in trajectories))
    with sglang_engine(
        MODEL,
        tmp_path,
        config,
        max_total_tokens=slots,
        max_running_requests=running,  # 3: fewer than the branches of most families
        chunked_prefill_size=chunk,
        schedule_conservativeness=0.02,
    ) as engine:
        loop = engine.backend.engine.loop
        requests = [replay(engine, t) for t in trajectories]
        outputs, aborted = loop.run_until_complete(run_all(engine, requests, rng, 0.3))
        withdrawn = 0
        retractions = 0
        for index, (output, t) in enumerate(zip(outputs, trajectories, strict=True)):
            meta = output["meta_info"]
            if meta["finish_reason"]["type"] == "abort":
                assert index in aborted
                withdrawn += 1
                continue
            again = from_wire(meta[KEY][-1]["trajectory"], t.prompt_ids)
            assert again.completion_ids == t.completion_ids
            assert again.layout == t.layout
            retractions += meta["num_retractions"]
            if index % 5 == 0:
                check_against_dense(MODEL, again)
            assert again.logprobs == pytest.approx(t.logprobs, abs=1e-4, nan_ok=True)
        assert withdrawn > 10, "hardly a request was withdrawn in time: the test shows nothing"
        assert retractions > 5, "hardly a family was ever suspended: the test shows nothing"
        assert engine.report()["num_used"] == engine.report()["families"] == 0
        engine.weights_changed()
        assert engine.report()["num_cached"] == 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed, running, chunk", [(2, 60, 8), (4, 2, 32), (12, 20, 32)])
def test_families_and_ordinary_requests_in_each_others_way(
    seed, running, chunk, monkeypatch, tmp_path
):
    """A quarter are ordinary requests, some as large as the pool; 250 in all."""
    rng = random.Random(seed)
    config = EngineConfig(max_depth=2)
    trajectories = []
    for number in range(12):
        params = {"max_tokens": rng.choice([40, 120, 250]), "max_span": rng.choice([None, 50])}
        trajectories += written_by_policy(MODEL, monkeypatch, number, config, params, n=4)
    slots = int(1.15 * max(len(t.prompt_ids) + t.work for t in trajectories))
    options = {"max_total_tokens": slots, "max_running_requests": running}
    with sglang_engine(MODEL, tmp_path, config, chunked_prefill_size=chunk, **options) as engine:
        requests, replayed = [], {}
        for index in range(250):
            if rng.random() < 0.25:
                plain = {"max_new_tokens": rng.choice([10, 60, slots - 20]), "temperature": 0}
                requests.append(([20 + index % 9, 21, 22], plain))
            else:
                replayed[index] = t = trajectories[index % len(trajectories)]
                requests.append(replay(engine, t, rng.choice(["parallel", "sequential"])))
        loop = engine.backend.engine.loop
        outputs, aborted = loop.run_until_complete(run_all(engine, requests, rng, 0.25))
        retractions = {True: 0, False: 0}
        for index, output in enumerate(outputs):
            meta = output["meta_info"]
            if meta["finish_reason"]["type"] == "abort":
                assert index in aborted
                continue
            retractions[index in replayed] += meta["num_retractions"]
            if index in replayed:
                again = from_wire(meta[KEY][-1]["trajectory"], requests[index][0])
                assert again.completion_ids == replayed[index].completion_ids
                if index % 10 == 0:
                    check_against_dense(MODEL, again)
        print("retracted: families", retractions[True], "ordinary", retractions[False])
        assert retractions[True] > 0
        assert engine.report()["num_used"] == engine.report()["families"] == 0
