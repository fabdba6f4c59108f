"""The seed corpus: shares, grammar, and what is right and wrong in it, read back by eval."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace

import pytest

from npr_lib.profiles.profile import load_profile
from npr_lib.reasoning.schema import parse
from npr_lib.reasoning.tokens import TagIds
from npr_lib.tasks.parts.corpus import KINDS, MALFORMATIONS
from npr_lib.tasks.parts.seed import IGNORE, _encode
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.tasks.problems import SHARES, split_of
from npr_lib.train.seed import documents as documents_of

TINY = load_profile("tiny")
SPEC = TINY.seed.corpus
LINE = re.compile(r"([A-Z])=([A-Z1-9](?:[+-]\d)+)((?:=\d(?:[+-]\d)+)*)([=~])(\d+|\?)")


@pytest.fixture(scope="module")
def documents():
    return list(itertools.islice(documents_of(TINY, 0), 6000))


def parts_of(document) -> dict[str, str]:
    return dict(re.findall(r"([A-Z])=([^;]+);", document.prompt))


def read_step(text, parts, known):
    """label -> (value written, right given what is known) of a step; checks every line in it."""
    found = {}
    lines = [m.groups() for m in LINE.finditer(text)]
    assert ",".join(f"{a}={b}{c}{d}{e}" for a, b, c, d, e in lines) == text
    for label, expression, derivation, sign, value in lines:
        assert parts[label] == expression
        above = expression[0] if expression[0].isalpha() else None
        start = {**known, **found}.get(above, (None,))[0] if above else expression[0]
        resolved = f"{start}{expression[1:]}"
        steps = derivation.split("=")[1:]
        running = [] if start is None else [eval(resolved[: i + 2]) for i in range(1, 7, 2)]
        if not running or not all(0 <= x <= 9 for x in running):
            assert value == "?" and not steps, text
            found[label] = (None, False)
            continue
        assert steps[0] == resolved if above else True
        for step in steps:
            assert eval(step) == eval(resolved), text
        assert (sign == "~") == (len(lines) > 1)
        found[label] = (int(value), int(value) == eval(resolved))
    return found


def test_shares_of_kinds_are_the_profiles(documents):
    kinds = Counter("malformed" if d.kind in MALFORMATIONS else d.kind for d in documents)
    for kind in KINDS:
        share = getattr(SPEC, kind)
        slack = 4 * (share * (1 - share) / len(documents)) ** 0.5  # 4 standard deviations
        assert abs(kinds[kind] / len(documents) - share) < slack, kind
    assert set(MALFORMATIONS) <= {d.kind for d in documents}


def test_exactly_the_documents_called_valid_are_valid(documents):
    for document in documents:
        if document.kind != "drill":  # drills are not whole responses
            graph = parse(document.response)
            assert graph.valid == (document.kind == "valid"), (document, graph.violations)


def test_only_training_sub_expressions_are_used(documents):
    for document in documents:
        parts = parts_of(document)

        def value(label, parts=parts):
            return eval(text(label, parts))

        def text(label, parts=parts):
            start = parts[label][0]
            return (str(value(start)) if start.isalpha() else start) + parts[label][1:]

        for label in parts:
            assert split_of(text(label), TINY.problems.get("shares", SHARES)) == "train"


def valid_blocks(documents):
    """(document, plans, what each step found, parts done before, the takeaway) of every block."""
    for document in documents:
        if document.kind != "valid":
            continue
        parts, known = parts_of(document), {}
        for block in parse(document.response).blocks:
            plans = [plan.text.split(",") for plan in block.plans]
            before, found = dict(known), []
            for plan, step in zip(plans, block.steps, strict=True):
                found.append(read_step(step.text, parts, known))
                assert list(found[-1]) == plan
                known |= found[-1]
            yield document, plans, found, before, block.takeaway


def test_alone_a_part_is_right_and_together_subtractions_are_forgotten(documents):
    together = Counter()
    for document, plans, found, _, _ in valid_blocks(documents):
        parts = parts_of(document)
        for plan, step in zip(plans, found, strict=True):
            for label, (value, right) in step.items():
                if len(plan) == 1:
                    assert right or value is None
                elif value is not None:
                    together[parts[label][-2], right] += 1
    assert together["+", False] == 0
    wrong = together["-", False] / (together["-", False] + together["-", True])
    assert abs(wrong - SPEC.careless) < 0.03


def test_takeaways_and_answers_hold_what_the_steps_found(documents):
    answers: dict[int, dict[str, str]] = {}
    for document, _, found, _, takeaway in valid_blocks(documents):
        entries = {p: "?" if v is None else str(v) for step in found for p, (v, _) in step.items()}
        assert takeaway == ",".join(f"{label}={value}" for label, value in entries.items())
        answers.setdefault(id(document), {}).update(entries)
    for document in documents:
        if document.kind == "valid":
            found = answers[id(document)]
            assert parse(document.response).boxed == ",".join(found[p] for p in parts_of(document))


def test_blocks_take_on_all_ready_parts_or_the_only_one_everything(documents):
    """Generation by generation, each in cyclic order; a wide block has all of them in one."""
    planned: dict[int, list[list[str]]] = {}
    starts, widths = Counter(), Counter()
    for document, plans, _, _, _ in valid_blocks(documents):
        planned.setdefault(id(document), []).append(list(itertools.chain(*plans)))
        if len(planned[id(document)][-1]) == 4:
            widths[len(plans)] += 1
    for document in documents:
        if id(document) not in planned:
            continue
        parts, blocks = parts_of(document), planned[id(document)]
        left, labels, generations = set(parts), list(itertools.chain(*blocks)), []
        while left:
            ready = sorted(p for p in left if parts[p][0] not in left)
            taken, labels = labels[: len(ready)], labels[len(ready) :]
            assert "".join(taken) in "".join(ready) * 2 and set(taken) == set(ready)
            if len(ready) == 3:
                starts[ready.index(taken[0])] += 1
            generations.append(taken)
            left -= set(ready)
        assert not labels
        if len(generations) > 1:
            assert blocks in (generations, [list(itertools.chain(*generations))])
    assert min(starts.values()) > 0.7 * max(starts.values()) and len(starts) == 3
    assert set(widths) == {1, 2, 3, 4}


def test_wide_and_deep_are_practised_alike_and_chosen_by_chance(documents):
    """Half of each; only in the loss on the tag where they part has one of them more weight."""
    tokenizer = tiny_tokenizer()
    written, chosen = Counter(), Counter()
    for document in (d for d in documents if d.kind == "valid"):
        parts = parts_of(document)
        ready = {label for label in parts if not parts[label][0].isalpha()}
        ids, labels = _encode(document, tokenizer)
        silent = [i for i, label in enumerate(labels) if label == IGNORE]
        at = len(tokenizer.encode(document.prompt))
        assert silent[:at] == list(range(at))
        if len(ready) == len(parts):
            assert len(silent) == at
            continue
        head, tag = document.pieces[0][0], document.pieces[1][0]
        assert head + tag == document.response[: len(head) + len(tag)]
        assert set(re.findall(r"<plan>\d:([A-Z])</plan>", head)) == ready
        wide = len(parse(document.response).blocks) == 1
        assert head.endswith("</plan>") and tag == ("<plan>" if wide else "</guideline>")
        decides = len(tokenizer.encode(document.prompt + head))
        assert tokenizer.decode(ids[decides]) == tag and silent[at:] in ([], [decides])
        written[wide] += 1
        chosen[wide] += not silent[at:]
    for counts, chance in ((written, 0.5), (chosen, SPEC.wide)):
        slack = 4 * (chance * (1 - chance) / counts.total()) ** 0.5
        assert abs(counts[True] / counts.total() - chance) < slack


def test_drills_train_only_what_follows_the_forced_index(documents):
    """The index is the only key: any step, straight after the guideline, its header without loss;
    the values that a step needs come from earlier blocks, which are in sight."""
    tokenizer = tiny_tokenizer()
    tags = TagIds.from_tokenizer(tokenizer)
    first, needs = Counter(), Counter()
    for document in (d for d in documents if d.kind == "drill"):
        ids, labels = _encode(document, tokenizer)
        assert tokenizer.decode(ids) == document.prompt + document.response
        trained = [i for i, label in enumerate(labels) if label != IGNORE]
        assert trained and all(ids[i] == labels[i] for i in trained)
        assert not any(ids[i] in (tags.step, tags.guideline, tags.plan_end) for i in trained)
        parts, known = parts_of(document), {}
        earlier, last = document.response.rsplit("</guideline>", 1)
        for step in re.findall(r"<step>\d:([^<]+)</step>", earlier):
            known |= read_step(step, parts, known)
        plans = dict(re.findall(r"<plan>(\d):([^<]+)<", earlier.rsplit("<guideline>", 1)[1]))
        ((index, text),) = re.findall(r"<step>(\d):([^<]+)</step>", last)
        found = read_step(text, parts, known)
        assert ",".join(found) == plans[index]
        assert None not in dict(found.values())
        needs[any(parts[label][0].isalpha() for label in found)] += 1
        if len(plans) == 3:
            first[int(index)] += 1
    assert min(first[1], first[2], first[3]) > 0.5 * max(first.values())
    assert needs[True] > 50 and needs[False] > 50


def test_no_chain_of_another_split_is_written(documents):
    """Not even where a wrong value of a parent makes one: every four operands in a row, by hand."""
    chains = Counter()
    for document in documents:
        for text in re.split(r"[^\d+-]", f"{document.prompt}{document.response}"):
            if len(text) == 7:
                chains[split_of(text)] += 1
    assert set(chains) == {"train"} and chains["train"] > 10_000


def test_a_corpus_is_a_function_of_profile_and_seed(documents):
    assert list(itertools.islice(documents_of(TINY, 0), 50)) == documents[:50]
    assert list(itertools.islice(documents_of(TINY, 1), 50)) != documents[:50]
    with pytest.raises(ValueError, match="only to parts, stories"):
        next(documents_of(replace(TINY, problems={"kind": "file"}), 0))
