"""A random writer of responses, in place of sampling: most are well-formed, some are broken.

Random weights never write a block by themselves, so engine tests let this choose the tokens and
the engine score them (`Response.forced_token`, the hook that `replay` uses). Its choice depends on
the branch alone, never on what else is in the batch. In a style with lines it writes its share of
them, most of the time.
"""

import random

from npr_lib.engine.branch import Response
from npr_lib.reasoning.tokens import TagIds, encode


def random_policy(tokenizer, broken=0.02, nested=0.15, garbage=0.0):
    tags = TagIds.from_tokenizer(tokenizer)
    words = encode("0123456789+-=;ABCD ", tokenizer)
    (newline,) = encode("\n", tokenizer)
    eos = tokenizer.eos_token_id

    def choose(response: Response, branch):
        index = len(branch.sampled)
        rng = random.Random(f"{branch.key}/{index}")
        if response.grammar.writes.style.name == "lines" and index and rng.random() < 0.9:
            share = {"guideline": 1.0, "plan": 0.0}.get(branch.state, 0.05)
            if branch.sampled[-1] != newline and rng.random() < share:
                return newline
        if rng.random() < garbage:
            return rng.choice([*tags.ids, eos, *words])
        if rng.random() < broken / 10:
            return rng.choice([*tags.ids, eos])
        if branch.state == "guideline":
            want = random.Random(f"{branch.key}/{branch.blocks}").randint(1, 5)
            return tags.plan if len(branch.plans) < want else tags.guideline_end
        if branch.state == "plan":
            written = branch.plans[-1]
            label = encode(f"{len(branch.plans)}:", tokenizer)
            if len(written) < len(label):
                return label[len(written)]
            return rng.choice(words) if rng.random() < 0.5 else tags.plan_end
        if branch.state == "takeaway":
            return rng.choice(words) if rng.random() < 0.6 else tags.takeaway_end
        if branch.path:
            deep = len(branch.path) < response.grammar.config.max_depth
            if deep and branch.blocks < 2 and rng.random() < nested:
                return tags.guideline
            return rng.choice(words) if rng.random() < 0.8 else tags.step_end
        if branch.blocks == 0 or (rng.random() < 0.15 and branch.blocks < 3):
            return tags.guideline
        return rng.choice(words) if rng.random() < 0.7 else eos

    return choose
