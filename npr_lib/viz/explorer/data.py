"""What the interactive explorer shows: a table of rollouts and, one by one, their trajectories.

The front end (`frontend/`: plain JavaScript and CSS, no build step) is used three times: as a
widget that asks for a trajectory when it is selected (`widget`), in one self-contained page that
holds all of them, compressed (`page`), and in a fragment that holds one (`response`). All are given
the same two things:

    table(rollouts)       columns of the table, one value a rollout
    record(trajectory)    one trajectory: nodes, edges, lanes, spans, tokens
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, groupby, pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from npr_lib.reasoning.trajectory import Trajectory, from_row
from npr_lib.viz import theme
from npr_lib.viz.explorer.formulas import formulas
from npr_lib.viz.explorer.suspects import false_equations
from npr_lib.viz.explorer.written import as_written
from npr_lib.viz.names import lane, lane_name, segment_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from npr_lib.reasoning.layout import Segment

FRONTEND = Path(__file__).parent / "frontend"
# In the order in which each uses only what stands above it; the last one makes a widget of it all.
MODULES = (
    *("dom", "source", "scale", "tree", "canvas", "table", "graph", "detail"),
    *("timeline", "mask", "positions", "surprises", "panels", "edits", "view", "main", "widget"),
)
COLUMNS = {
    "verdict": "",
    "problem": "problem",
    "stage": "stage",
    "checkpoint": "checkpoint",
    "temperature": "T",
    "step": "step",
    "sample": "#",
    "edit": "what if",
    "origin": "of row",
    "seed": "seed",
    "branches": "widest",
    "blocks": "blocks",
    "work": "work",
    "span": "span",
    "speedup": "work/span",
    "finish_reason": "ended",
    "violations": "violations",
    "reward": "reward",
    "format_reward": "format",
    "advantage": "advantage",
    "mode": "mode",
    "answer": "answer",
}
"""Column of the front end's table -> its heading."""
ALWAYS = ("verdict", "problem", "branches", "work", "span")
CHUNK = 1 << 18  # characters of records compressed together: small ones share what they repeat
LONGEST_PENDING = 12  # tokens that may have to be decoded together to make characters
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"

Pieces = Callable[[Sequence[int], str], list[str]]


def table(rollouts: pd.DataFrame, always: Collection[str] = ALWAYS) -> dict[str, Any]:
    """The columns that say anything, as plain lists: of equal values only those of `always`.

    Returns:
        size: number of rollouts. columns: name -> values, None for missing ones. headings: name
        -> heading. groups: what tells one problem from another, one value a rollout. theme:
        colours of the kinds of segments, and of low, high, right and wrong. logprobs, entropies:
        whether any response has them.

    Raises:
        ValueError: the table holds no rollouts.
    """
    if rollouts.empty:
        raise ValueError("no rollouts to explore")
    widest = [max(map(int, branches), default=0) for branches in rollouts["num_branches"]]
    known = rollouts.assign(
        branches=widest,
        blocks=rollouts["num_blocks"],
        speedup=rollouts["work"] / rollouts["span"],
        violations=[", ".join(kinds) for kinds in rollouts["violations"]],
    )
    if "accuracy" in known:
        known["verdict"] = [_verdict(accuracy) for accuracy in known["accuracy"]]
    columns = {
        name: _plain(known[name])
        for name in COLUMNS
        if name in known and (name in always or known[name].nunique(dropna=False) > 1)
    }
    if columns.get("stage") == columns.get("checkpoint"):
        columns.pop("checkpoint", None)
    key = next((name for name in ("problem_id", "problem") if name in known), None)
    groups = pd.factorize(known[key])[0].tolist() if key else list(range(len(known)))
    colors = {"kinds": theme.KINDS, "low": theme.BLUE, "high": theme.VERMILLION}
    headings = {name: COLUMNS[name] for name in columns}
    return {
        "size": len(known),
        "columns": columns,
        "headings": headings,
        "groups": groups,
        "theme": colors,
        **{name: _any_known(known.get(name, ())) for name in ("logprobs", "entropies")},
    }


def _any_known(values: Iterable[Sequence[float]]) -> bool:
    """Whether any token of any response has such a number."""
    return any(np.isfinite(np.asarray(own, float)).any() for own in values)


def _verdict(accuracy: float) -> str | None:
    """None for a response that nobody has checked."""
    if pd.isna(accuracy):
        return None
    return "right" if accuracy == 1 else "wrong"


def _plain(values: pd.Series) -> list:
    """Plain Python values; floats to four digits, missing ones None."""
    if pd.api.types.is_float_dtype(values):
        return [None if math.isnan(x) else float(f"{x:.4g}") for x in values]
    return [None if pd.isna(x) else x for x in values.tolist()]


def record(
    trajectory: Trajectory,
    pieces: Pieces | None = None,
    prompt: str = "",
    tokens: Sequence[str] | None = None,
) -> dict[str, Any]:
    """One trajectory as the front end draws it; a sequential one in the parts that it wrote.

    Args:
        pieces: what `reader` returns; without it texts are shown whole.
        prompt: the prompt's text, which a trajectory does not hold.
        tokens: the text of each token, of a response that was made elsewhere (`foreign`); what only
            its engine knew is left out then, and the steps are those of an ideal one.

    Returns:
        segments: the nodes (`_node`). edges: pairs of segments, [upper, lower]. lanes: names of
        the timeline's lanes. logprobs, entropies, sampled, steps: one a token of the completion
        (the first two in 1/1000 nat, None where engine-written or unknown). prompt_len, work, span
        in tokens. ideal: the first three are empty, since nobody knows them, and the steps are
        ideal. violations: {kind, message, segment, token in it}.
    """
    if pieces and trajectory.mode == "sequential":
        trajectory = as_written(trajectory, pieces)
    segments, names = trajectory.segments, segment_names(trajectory)
    lanes = sorted({lane(segment.path) for segment in segments})
    texts = [prompt if s.kind == "prompt" else trajectory.segment_text(s) for s in segments]
    ids = [*trajectory.prompt_ids, *trajectory.completion_ids]
    nodes = []
    for segment, name, text in zip(segments, names, texts, strict=True):
        own = slice(segment.start, segment.end)
        shown = tokens[own] if tokens else pieces(ids[own], text) if pieces else [text]
        nodes.append(_node(trajectory, segment, name, list(shown)))
        nodes[-1]["lane"] = lanes.index(lane(segment.path))
    known, ended = tokens is None, trajectory.violation or trajectory.finish_reason
    return {
        "segments": nodes,
        "edges": _edges(segments),
        "lanes": [lane_name(one) for one in lanes],
        **(_chosen(trajectory) if known else {"logprobs": [], "entropies": [], "sampled": []}),
        "steps": trajectory.decode_steps,
        "prompt_len": len(trajectory.prompt_ids),
        "work": trajectory.work,
        "span": trajectory.span,
        "ideal": not known,
        "mode": trajectory.mode,
        "ended": ended if isinstance(ended, str) else None,  # missing where nobody knows it
        "boxed": trajectory.graph.boxed,
        "violations": _violations(trajectory, nodes),
    }


def _chosen(trajectory: Trajectory) -> dict[str, list[Any]]:
    """What the policy's choices were made with."""
    return {
        "logprobs": _thousandths(trajectory.logprobs),
        "entropies": _thousandths(trajectory.entropies),
        "sampled": [int(own) for own in trajectory.sampled],
    }


def _thousandths(nats: Sequence[float]) -> list[int | None]:
    return [None if math.isnan(x) else round(1000 * x) for x in nats]


def _node(trajectory: Trajectory, segment: Segment, name: str, tokens: list[str]) -> dict[str, Any]:
    """A segment: which tokens, where, what it says, what it must not see, whose slots it reads."""
    intervals = trajectory.layout.hidden[:, segment.start]
    hidden = [[int(low), int(high)] for low, high in intervals if high > low]
    positions = trajectory.position_ids[[segment.start, segment.end - 1]]
    text = "".join(tokens)
    wrong = false_equations(text) if segment.kind != "prompt" else []
    return {
        "kind": segment.kind,
        "name": name,
        "path": [list(step) for step in segment.path],
        "start": segment.start,
        "end": segment.end,
        "positions": positions.tolist(),
        "hidden": hidden,
        "shared": segment.start - sum(high - low for low, high in hidden),
        "tokens": tokens,
        "formulas": formulas(text),
        "false": [[_token_at(tokens, start), _token_at(tokens, end - 1)] for start, end in wrong],
    }


def _token_at(tokens: Sequence[str], offset: int) -> int:
    """The token that holds the character at `offset` of the joined tokens, or the last one."""
    ends = list(accumulate(map(len, tokens)))
    return min(bisect_right(ends, offset), len(tokens) - 1)


def _edges(segments: Sequence[Segment]) -> list[list[int]]:
    """Pairs [upper, lower]: neighbours in a branch, and at a fork or a join all that meet there."""
    edges: list[list[int]] = []

    def ends(indices: Iterable[int], depth: int) -> tuple[list[int], list[int]]:
        """The segments that a branch begins and ends with, once the edges in it are noted."""
        items: list[tuple[list[int], list[int]]] = []
        for forks, run in groupby(indices, lambda i: [b for b, _ in segments[i].path[depth:][:1]]):
            if forks:
                branches = groupby(run, lambda i: segments[i].path[depth])
                inner = [ends(own, depth + 1) for _, own in branches]
                first, last = (
                    [i for end in side for i in end] for side in zip(*inner, strict=True)
                )
                items.append((first, last))
            else:
                items += [([i], [i]) for i in run]
        for (_, upper), (lower, _) in pairwise(items):
            edges.extend(map(list, product(upper, lower)))
        return items[0][0], items[-1][1]

    ends(range(len(segments)), 0)
    return edges


def _violations(trajectory: Trajectory, nodes: Sequence[dict]) -> list[dict[str, Any]]:
    own = [i for i, segment in enumerate(trajectory.segments) if segment.kind != "prompt"]
    ends = list(accumulate(len("".join(nodes[i]["tokens"])) for i in own))
    found = []
    for violation in trajectory.graph.violations:
        i = min(bisect_right(ends, violation.offset), len(own) - 1)
        inside = violation.offset - (ends[i - 1] if i else 0)
        place = {"segment": own[i], "token": _token_at(nodes[own[i]]["tokens"], inside)}
        found.append({"kind": str(violation.kind), "message": violation.message, **place})
    return found


def reader(tokenizer: PreTrainedTokenizerBase) -> Pieces:
    """A function (ids, their text) -> the text of every token; joined they are the text.

    Of tokens that only together make a character the last one holds it. Where the text can't be
    laid over the tokens the next token holds all the rest.
    """

    @lru_cache(maxsize=1 << 18)
    def decode(ids: tuple[int, ...]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False)

    def pieces(ids: Sequence[int], text: str) -> list[str]:
        parts: list[str] = []
        pending: tuple[int, ...] = ()
        at = 0
        for i in ids:
            pending = (*pending, int(i))
            part = decode(pending) if len(pending) <= LONGEST_PENDING else ""
            # Some tokenizers drop the space before what is decoded alone.
            fits = [p for p in (part, f" {part}") if part and text.startswith(p, at)]
            parts.append(fits[0] if fits else "")
            if fits:
                pending, at = (), at + len(fits[0])
        if at < len(text):
            parts[-max(1, len(pending))] += text[at:]
        return parts

    return pieces


def records(
    rollouts: pd.DataFrame, tokenizer: PreTrainedTokenizerBase | None
) -> Callable[[int], dict[str, Any]]:
    """A function: number of a row -> its record. Rows that `foreign.read_texts` made hold the texts
    of their tokens themselves."""
    pieces = reader(tokenizer) if tokenizer else None

    def read(row: int) -> dict[str, Any]:
        values = rollouts.iloc[row]
        if is_foreign(values):
            return record(from_row(values), tokens=list(values["tokens"]))
        prompt = str(values.get("problem", ""))
        if tokenizer:
            prompt = tokenizer.decode(values["prompt_ids"], skip_special_tokens=False)
        return record(from_row(values), pieces, prompt)

    return read


def is_foreign(row: pd.Series) -> bool:
    """Whether a row is of a response made elsewhere (in a table that may hold others, too)."""
    return isinstance(row.get("tokens"), list | np.ndarray)


def find(rollouts: pd.DataFrame, words: str) -> list[int]:
    """Numbers of the rows whose problem or response holds `words`, whatever the case."""
    held = rollouts["text"].str.contains(words, case=False, regex=False)
    if "problem" in rollouts:
        held |= rollouts["problem"].str.contains(words, case=False, regex=False, na=False)
    return np.flatnonzero(held).tolist()


def script(modules: Sequence[str] = MODULES) -> str:
    """Modules of the front end as one, without imports and lines of comment; all of them make an
    ES module."""
    sources = [(FRONTEND / f"{name}.js").read_text(encoding="utf-8") for name in modules]
    whole = re.sub(r'^import \{[^}]*\} from "\./\w+\.js";\n', "", "\n".join(sources), flags=re.M)
    return re.sub(r"^export (?!default)|^ *//.*\n", "", whole, flags=re.M)


def style() -> str:
    """The front end's style sheet."""
    return (FRONTEND / "explorer.css").read_text(encoding="utf-8")


def page(
    rollouts: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase | None = None,
    title: str = "rollouts",
) -> str:
    """One HTML page that opens without a server; its own policy forbids it any request."""
    read = records(rollouts, tokenizer)
    chunks, places = _chunks(_json(read(row)) for row in range(len(rollouts)))
    texts = rollouts["text"].tolist()
    if "problem" in rollouts:
        texts = [f"{a}\n{b}" for a, b in zip(rollouts["problem"], texts, strict=True)]
    data = {
        "table": table(rollouts),
        "chunks": chunks,
        "places": places,
        "texts": _pack(_json(texts)),
    }
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style()}</style>\n</head>\n"
        f'<body class="npr-page">\n<div id="explorer"></div>\n'
        f'<script type="application/json" id="data">{embedded(data)}</script>\n'
        f'<script type="module">\n{script()}\n'
        'mount(document.getElementById("explorer"),\n'
        '  pageSource(JSON.parse(document.getElementById("data").textContent)));\n'
        "</script>\n</body>\n</html>\n"
    )


def embedded(value: Any) -> str:
    """JSON to stand in a script element, which no text in it can end."""
    return _json(value).replace("<", "\\u003c")


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _pack(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _chunks(texts: Iterable[str]) -> tuple[list[str], list[list[int]]]:
    """JSON texts as packed lists of them, and where each is: (list, place in it)."""
    packed: list[str] = []
    places: list[list[int]] = []
    held: list[str] = []
    size = 0
    for text in texts:
        places.append([len(packed), len(held)])
        held.append(text)
        size += len(text)
        if size >= CHUNK:
            packed.append(_pack(f"[{','.join(held)}]"))
            held, size = [], 0
    if held:
        packed.append(_pack(f"[{','.join(held)}]"))
    return packed, places
