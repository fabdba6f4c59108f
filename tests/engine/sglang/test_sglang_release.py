"""A model folder as the paper's authors release theirs, on real SGLang."""

import pytest
from releases import TOKENIZERS, check_isolation, check_release, check_training, force, release
from sglang_engines import sglang_engine
from test_engine_oracle import check_against_dense

from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.engine.checkpoint import load_checkpoint
from npr_lib.engine.sglang.wire import KEY, pack
from npr_lib.reasoning.schema import TAGS
from npr_lib.reasoning.style import LINES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_release_is_decoded_in_its_style(name, tmp_path, monkeypatch):
    """Forced; by a client of this library and by one that asks for no more than NPR, which gets the
    text with its tags, special tokens as they are."""
    folder = release(tmp_path, TOKENIZERS[name]())
    model, tokenizer = load_checkpoint(folder)
    with monkeypatch.context() as patch:
        force(patch, tokenizer)
        written = TorchEngine(model, tokenizer).generate(["plan x"], SamplingParams(max_tokens=150))
    with sglang_engine(None, folder, EngineConfig(num_slots=4096)) as engine:
        assert engine.style == LINES
        (t,) = engine.replay_all(written, "parallel")
        check_release(tokenizer, t)
        assert check_against_dense(model, t) > 0.1
        check_isolation(model, t)
        check_training(model, tokenizer, [t])
        forced = pack(engine.replay_settings(t, "parallel"))[KEY]["forced"]
        plain = {"mode": "parallel", "forced": forced}
        (output,) = engine.backend.generate(
            [t.prompt_ids], [{"max_new_tokens": t.work, "custom_params": {KEY: plain}}]
        )
    assert output["meta_info"][KEY][-1]["trajectory"]["completion_ids"] == t.completion_ids
    assert output["meta_info"][KEY][-1]["trajectory"]["style"] == "lines"
    assert output["text"] == t.text and all(tag in t.text for tag in TAGS)
