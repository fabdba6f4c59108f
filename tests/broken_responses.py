"""One broken response for every kind of violation, and the parts they are made of."""

from __future__ import annotations

from npr_lib.reasoning.schema import ViolationKind

K = ViolationKind
ANSWER = "so \\boxed{5}"


def response(
    guideline: str = "<plan>1:a</plan><plan>2:b</plan>",
    steps: str = "<step>1:c</step><step>2:d</step>",
    takeaway: str = "<takeaway>e</takeaway>",
    before: str = "",
    after: str = ANSWER,
) -> str:
    """A valid response, each part replaceable by a broken one."""
    return f"{before}<guideline>{guideline}</guideline>{steps}{takeaway}{after}"


VALID = response()
NESTED_STEP = f"<step>1:c{response(after='')}f</step><step>2:d</step>"

# name: text, kind -> how many violations of it
BROKEN: dict[str, tuple[str, dict[ViolationKind, int]]] = {
    "empty": ("", {K.EMPTY: 1}),
    "blank": (" \n\t", {K.EMPTY: 1}),
    "no block": ("so \\boxed{5}", {K.NO_BLOCK: 1}),
    "no block, no box": ("five", {K.NO_BLOCK: 1, K.MISSING_BOX: 1}),
    "no guideline": ("<step>1:c</step><takeaway>e</takeaway>" + ANSWER, {K.NO_BLOCK: 1}),
    "tags before the block": (response(before="</step> "), {K.TAGS_OUTSIDE_BLOCKS: 1}),
    "tags between blocks": (
        response(after="<takeaway></takeaway>") + VALID,
        {K.TAGS_OUTSIDE_BLOCKS: 2},
    ),
    "no plan": (response(guideline=""), {K.NO_PLAN: 1}),
    "no plan, no step": (response(guideline="", steps=""), {K.NO_PLAN: 1}),
    "a step too few": (response(steps="<step>1:c</step>"), {K.COUNT_MISMATCH: 1}),
    "no step": (response(steps=""), {K.COUNT_MISMATCH: 1}),
    "a step too many": (response(guideline="<plan>1:a</plan>"), {K.COUNT_MISMATCH: 1}),
    "tags after": (response(after=f"<step>3:c</step>{ANSWER}"), {K.TAGS_AFTER_BLOCKS: 2}),
    "no box": (response(after="so 5"), {K.MISSING_BOX: 1}),
    "no answer": (response(after=""), {K.MISSING_BOX: 1}),
    "empty box": (response(after="so \\boxed{ }"), {K.MISSING_BOX: 1}),
    "unbalanced box": (response(after="\\boxed{5"), {K.MISSING_BOX: 1}),
    "box before the answer only": (
        response(takeaway="<takeaway>\\boxed{5}</takeaway>", after="so"),
        {K.MISSING_BOX: 1},
    ),
    "plan after the guideline": (
        response(steps="<plan>3:x</plan><step>1:c</step><step>2:d</step>"),
        {K.MISPLACED_TAG: 2},
    ),
    "guideline twice": (
        response(guideline="<guideline><plan>1:a</plan><plan>2:b</plan>"),
        {K.MISPLACED_TAG: 1},
    ),
    "no takeaway, next block": (response(takeaway="", after=VALID), {K.MISPLACED_TAG: 1}),
    "closed twice": (
        response(steps="<step>1:c</step></step><step>2:d</step>"),
        {K.MISPLACED_TAG: 1},
    ),
    "plans from zero": (response("<plan>0:a</plan><plan>1:b</plan>"), {K.PLAN_INDEX: 2}),
    "plan without index": (response("<plan>a</plan><plan>2:b</plan>"), {K.PLAN_INDEX: 1}),
    "plans swapped": (response("<plan>2:a</plan><plan>1:b</plan>"), {K.PLAN_INDEX: 2}),
    "leading zero": (response("<plan>01:a</plan><plan>2:b</plan>"), {K.PLAN_INDEX: 1}),
    "other digits": (response("<plan>\u0661:a</plan><plan>2:b</plan>"), {K.PLAN_INDEX: 1}),
    "huge index": (response(f"<plan>{'9' * 9999}:a</plan><plan>2:b</plan>"), {K.PLAN_INDEX: 1}),
    "step index": (response(steps="<step>1:c</step><step>1:d</step>"), {K.STEP_INDEX: 1}),
    "step without index": (response(steps="<step>c</step><step>2:d</step>"), {K.STEP_INDEX: 1}),
    "unclosed plan": (response("<plan>1:a<plan>2:b</plan>"), {K.UNCLOSED: 1}),
    "unclosed last plan": (response("<plan>1:a</plan><plan>2:b"), {K.UNCLOSED: 1}),
    "unclosed step": (response(steps="<step>1:c<step>2:d</step>"), {K.UNCLOSED: 1}),
    "unclosed last step": (response(steps="<step>1:c</step><step>2:d"), {K.UNCLOSED: 1}),
    "unclosed takeaway": (response(takeaway="<takeaway>e", after=VALID), {K.UNCLOSED: 1}),
    "unclosed guideline": (VALID.replace("</guideline>", ""), {K.UNCLOSED: 1}),
    "cut in a plan": ("<guideline><plan>1:a", {K.TRUNCATED: 3, K.MISSING_BOX: 1}),
    "cut after the guideline": (
        "<guideline><plan>1:a</plan></guideline>",
        {K.TRUNCATED: 1, K.MISSING_BOX: 1},
    ),
    "cut in a step": (
        "<guideline><plan>1:a</plan></guideline><step>1:c \\boxed{5}",
        {K.TRUNCATED: 2, K.MISSING_BOX: 1},
    ),
    "cut in the takeaway": (
        response(takeaway="<takeaway>e", after=""),
        {K.TRUNCATED: 1, K.MISSING_BOX: 1},
    ),
    "six plans": (
        response(
            "".join(f"<plan>{i}:a</plan>" for i in range(1, 7)),
            "".join(f"<step>{i}:a</step>" for i in range(1, 7)),
        ),
        {K.TOO_MANY_BRANCHES: 1},
    ),
    "nested": (response(steps=NESTED_STEP), {K.TOO_DEEP: 1}),
    "short plan": (response("<plan>1:</plan><plan>2:b</plan>"), {K.SHORT_PLAN: 1}),
    "two short plans": (response("<plan>1: </plan><plan>2:\n</plan>"), {K.SHORT_PLAN: 2}),
    "short step": (response(steps="<step>1: </step><step>2:d</step>"), {K.SHORT_STEP: 1}),
    "short takeaway": (response(takeaway="<takeaway> </takeaway>"), {K.SHORT_TAKEAWAY: 1}),
    "tags in a plan": (
        response("<plan>1:a<step>x</step></plan><plan>2:b</plan>"),
        {K.TAGS_IN_PLAN: 1},
    ),
    "only a tag in a plan": (
        response("<plan>1:<step></plan><plan>2:b</plan>"),
        {K.TAGS_IN_PLAN: 1},
    ),
    "tag in a step": (
        response(steps="<step>1:c</plan></step><step>2:d</step>"),
        {K.TAGS_IN_STEP: 1},
    ),
    "step in a step": (
        response(steps="<step>1:c<step>x</step></step><step>2:d</step>"),
        {K.TAGS_IN_STEP: 1},
    ),
    "tags in both steps": (
        response(steps="<step>1:c<plan></step><step>2:d<plan></step>"),
        {K.TAGS_IN_STEP: 2},
    ),
    "tag in the takeaway": (
        response(takeaway="<takeaway>e<guideline>f</takeaway>"),
        {K.TAGS_IN_TAKEAWAY: 1},
    ),
    "text in the guideline": (
        response("<plan>1:a</plan>x<plan>2:b</plan>y"),
        {K.STRAY_TEXT_IN_GUIDELINE: 2},
    ),
    "text after the guideline": (
        response(steps="x<step>1:c</step><step>2:d</step>"),
        {K.STRAY_TEXT_BETWEEN_STEPS: 1},
    ),
    "text between steps": (
        response(steps="<step>1:c</step>,<step>2:d</step>.", after=ANSWER),
        {K.STRAY_TEXT_BETWEEN_STEPS: 2},
    ),
    "text before": (response(before="Well. "), {K.STRAY_TEXT_OUTSIDE_BLOCKS: 1}),
    "text between blocks": (response(after="x" + VALID), {K.STRAY_TEXT_OUTSIDE_BLOCKS: 1}),
}
