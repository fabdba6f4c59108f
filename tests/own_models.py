"""A model of one's own, as somebody might bring one: a small Llama with a BPE tokenizer and a chat
template, that answers word problems in the parallel format, more often than not, with tags that
are ordinary text to it."""

import json
from pathlib import Path

import torch
from test_tokens import bpe
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Ida", "Jo", "Kim")
THINGS = ("pears", "nuts", "figs", "cats", "pens", "coins", "hats", "cups")
# Every problem's answer is 7: what is told apart here is right, wrong and malformed.
PLANNED = (
    "<guideline><plan>1:count one</plan><plan>2:count two</plan></guideline>"
    "<step>1:the first is counted</step><step>2:the second is counted</step>"
    "<takeaway>both together</takeaway>"
)
RESPONSES = (
    *(f"{PLANNED}So it is \\boxed{{7}}.",) * 4,
    *(f"{PLANNED}So it is \\boxed{{8}}.",) * 2,
    f"{PLANNED}So it is 7.",
    "It is \\boxed{7}.",
)


def word_problems() -> list[dict[str, str]]:
    return [
        {"question": f"{name} has {a} {thing} and gets {7 - a}. How many?", "answer": "7"}
        for name in NAMES
        for thing in THINGS
        for a in range(1, 7)
    ]


def write_problems(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in word_problems()))
    return path


def tokenizer(chat: str | None = CHAT) -> PreTrainedTokenizerFast:
    core = ByteLevelBPETokenizer()
    texts = [row["question"] for row in word_problems()] + [*RESPONSES] * 20
    core.train_from_iterator(texts, vocab_size=600)
    core.add_special_tokens(["<eos>", "<|user|>", "<|system|>", "<|assistant|>"])
    found = PreTrainedTokenizerFast(tokenizer_object=core._tokenizer, eos_token="<eos>")
    found.chat_template = chat
    return found


def write_random(folder: Path) -> Path:
    """A tiny Llama that has learnt nothing, with a BPE tokenizer and more rows than that has."""
    own = bpe()
    config = LlamaConfig(
        vocab_size=len(own) + 20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=own.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    own.save_pretrained(folder)
    return folder


def write_model(folder: Path, system: str, steps: int = 200) -> Path:
    """Trained for a few seconds on `RESPONSES`, whatever is asked after this system message."""
    torch.manual_seed(0)
    own = tokenizer()
    config = LlamaConfig(
        vocab_size=len(own) + 8,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=own.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    problems, draw = word_problems(), torch.Generator().manual_seed(0)
    for step in range(steps):
        rows = []
        for i in torch.randint(len(problems), (12,), generator=draw).tolist():
            asked = [{"role": "system", "content": system}]
            asked += [{"role": "user", "content": problems[i]["question"]}]
            prompt = own.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            response = RESPONSES[int(torch.randint(len(RESPONSES), (1,), generator=draw))]
            rows.append(own.encode(f"{prompt}{response}<eos>", add_special_tokens=False))
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, -100)
        loss = model(input_ids=ids.clamp(min=0), labels=ids).loss
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    return folder
