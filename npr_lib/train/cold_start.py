"""Cold start: a model that never writes the format has nothing to reinforce.

SmolLM2-135M writes it in 0 of 32 responses, whether told to or shown two examples. A short SFT on
documents of mixed quality gives it what an instruct model brings along: it has seen the format
among other ways of answering. The documents are, by `cold_start.source`,

    corpus      written by the problem set's own templates: valid, malformed and plain ones, as the
                tiny seed reads (`tasks.parts.corpus`)
    few_shot    the model's own responses to a prompt that shows the format (`cold_start.prompt`),
                those that are valid and right, as if it had been asked with the plain prompt
    FILE.jsonl  `problem` and `response`, one a line

The model decodes sequentially and the tags are ordinary text: what stage 1 begins with.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTTrainer

from npr_lib import WorkbenchError
from npr_lib.engine import TorchEngine
from npr_lib.engine.attention import use_npr_attention
from npr_lib.engine.sampling import mix
from npr_lib.files import digest, write_text
from npr_lib.profiles.sections import Profile
from npr_lib.profiles.stage import Stage
from npr_lib.reasoning.schema import parse
from npr_lib.reasoning.tokens import encode_prompt
from npr_lib.tasks.parts.corpus import Document, corpus
from npr_lib.tasks.problems import Problem, build_prompt, load_problems
from npr_lib.train import checkpoints, sft
from npr_lib.train.checkpoints import Training
from npr_lib.train.logs import log_to
from npr_lib.train.rollout import score

READ = "documents.jsonl"  # in the model's folder: what it has read


def train(
    stage: Stage, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, training: Training
) -> None:
    """SFT on the documents, in place. `training.work` gets the documents, the log, and checkpoints
    to go on from. WorkbenchError if the source has none."""
    section = stage.profile.cold_start
    if not (training.work / READ).exists():
        found = _collect(stage.profile, stage.seed, model, tokenizer)
        text = "".join(f"{json.dumps(asdict(document))}\n" for document in found)
        write_text(training.work / READ, text)
    use_npr_attention(model)
    trainer = SFTTrainer(
        model=model,
        args=sft.arguments(section.trl, training.work, stage.seed),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([example(d, tokenizer) for d in documents(training.work)]),
        data_collator=sft.Collator(None, "sequential"),
    )
    log_to(trainer, training.work, "seed")
    checkpoints.train(trainer, training.resume)


def documents(folder: Path) -> list[Document]:
    """What the model in this folder has read in a cold start; none, if it had none."""
    if not (folder / READ).exists():
        return []
    lines = (folder / READ).read_text(encoding="utf-8").splitlines()
    return [Document(**json.loads(line)) for line in lines]


def files(profile: Profile) -> dict[str, Any]:
    """The content of the file that is read, if one is."""
    path = Path(profile.cold_start.source)
    return {str(path): digest(path)} if path.suffix == ".jsonl" else {}


def example(document: Document, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Token ids and labels (-100: no loss). The response is encoded as a whole, as the model will
    write it; a token that reaches into a piece without loss has none."""
    prompt = encode_prompt(document.prompt, tokenizer)
    given = tokenizer(document.response, add_special_tokens=False, return_offsets_mapping=True)
    trained = "".join("x" if own else "." for text, own in document.pieces for _ in text)
    ids = list(given["input_ids"])
    spans = zip(ids, given["offset_mapping"], strict=True)
    labels = [-100 if "." in trained[start:end] else i for i, (start, end) in spans]
    if document.kind != "drill":  # which stops in the middle of a response
        ids.append(tokenizer.eos_token_id)
        labels.append(tokenizer.eos_token_id)
    return {
        "input_ids": prompt + ids,
        "labels": [-100] * len(prompt) + labels,
        "prompt_len": len(prompt),
    }


def _collect(
    profile: Profile, seed: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[Document]:
    section = profile.cold_start
    if section.source == "corpus":
        found = corpus(section.corpus, profile.problems, profile.prompt, seed, tokenizer)
        return list(islice(found, section.documents))
    if section.source == "few_shot":
        return _few_shot(profile, seed, model, tokenizer)
    return _from_file(Path(section.source), profile, seed, tokenizer)


def _few_shot(
    profile: Profile, seed: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[Document]:
    section, found = profile.cold_start, {}
    engine = TorchEngine(model, tokenizer, profile.engine)
    problems = load_problems(profile.problems, "train", seed)[: section.documents]
    for attempt in range(section.samples):
        asked = [problem for problem in problems if problem.id not in found]
        if not asked:
            break
        prompts = [build_prompt(problem, section.prompt, tokenizer) for problem in asked]
        params = replace(section.sampling, seed=mix(seed, attempt))
        for rollout in score(engine.generate(prompts, params, mode="sequential"), asked, problems):
            if rollout.correct and rollout.format_reward == 0:
                prompt = build_prompt(rollout.problem, profile.prompt, tokenizer)
                found[rollout.problem.id] = Document(prompt, ((rollout.text, True),), "few_shot")
    if not found:
        raise WorkbenchError(
            f"cold_start.source = few_shot: none of {len(problems)} problems got a valid, right "
            f"response in {section.samples} samples: show more in cold_start.prompt, or take "
            "another source"
        )
    print(f"few-shot: {len(found)} of {len(problems)} problems got a valid and right response")
    return list(found.values())


def _from_file(
    path: Path, profile: Profile, seed: int, tokenizer: PreTrainedTokenizerBase
) -> list[Document]:
    """The first documents of a JSON-lines file that answer no held-out problem."""
    if path.suffix != ".jsonl":
        raise WorkbenchError(f"cold_start.source = {path}: none, corpus, few_shot or a .jsonl file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise WorkbenchError(f"cold_start.source = {path} can't be read: {error}") from error
    held_out = {
        problem.problem
        for split in ("validation", "test")
        for problem in load_problems(profile.problems, split, seed)
    }
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            asked, response = row["problem"], row["response"]
            if not (isinstance(asked, str) and isinstance(response, str)):
                raise TypeError("not texts")
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise WorkbenchError(
                f"{path}, line {number}: not a JSON object with texts `problem` and `response`"
            ) from error
        if asked in held_out:
            continue
        prompt = build_prompt(Problem("", asked, ""), profile.prompt, tokenizer)
        found.append(Document(prompt, ((response, True),), "file"))
    if not found:
        raise WorkbenchError(
            f"cold_start.source = {path}: none of its {len(lines)} responses is to a problem that "
            "is not held out"
        )
    read = found[: profile.cold_start.documents]
    valid = sum(parse(document.response).valid for document in read)
    print(
        f"cold start: {len(read)} of the {len(lines)} responses of {path} (cold_start.documents), "
        f"{valid} of them valid; {len(lines) - len(found)} are to held-out problems"
    )
    return read
