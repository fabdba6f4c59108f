"""Fields of TRL's configurations that would change nothing here, and where it is that they would.

TRL's trainers generate, score, cut and pack by themselves; here the engine generates, the recipe
scores, and the collator makes the batches. A field that only TRL's own way would read is refused
when a profile is read: a setting that is recorded has an effect.
"""

from __future__ import annotations

_ENGINE = "responses come from the NPR Engine, see the section engine"
_SAMPLING = "responses are sampled by {section}.sampling"
_MODEL = "the model is loaded by the section model"
_VALIDATION = "validation is {section}.validation"
_COLLATOR = "rows are whole responses, made by npr_lib.train.sft"
_SEED = "the seed of all stages is random_seed"
_RUN = "a run decides it by itself"
_OBJECTIVE = "the stage's objective has no such term"
_DROPOUT = "the engine decodes without, and it is off in the trainer too"
_ROUTER = "the objective has no load-balancing term; the routers learn from the rewards alone"

_LAUNCH = "launch.config_file does"
_EVALUATED = "nothing is evaluated while it trains"

_BOTH = {
    "save_only_model": "a training goes on from its checkpoints, which need all of its state",
    "fsdp": _LAUNCH,
    "fsdp_config": _LAUNCH,
    "deepspeed": _LAUNCH,
    "seed": _SEED,
    "output_dir": _RUN,
    "resume_from_checkpoint": _RUN,
    "remove_unused_columns": _RUN,
    "model_init_kwargs": _MODEL,
    "trust_remote_code": _MODEL,
}
ELSEWHERE: dict[str, dict[str, str]] = {
    "grpo": _BOTH
    | {
        "temperature": "{section}.sampling.temperature does",
        "top_p": "{section}.sampling.top_p does",
        "top_k": "{section}.sampling.top_k does",
        "max_completion_length": "{section}.sampling.max_tokens does",
        "repetition_penalty": "{section}.sampling.branch_penalty does",
        "min_p": _SAMPLING,
        "generation_kwargs": _SAMPLING,
        "chat_template_kwargs": "prompt.chat does",
        "cache_implementation": _ENGINE,
        "ds3_gather_for_generation": _ENGINE,
        "use_vllm": _ENGINE,
        "use_transformers_paged": _ENGINE,
        "use_transformers_continuous_batching": _ENGINE,
        "transformers_continuous_batching_config": _ENGINE,
        "max_tool_calling_iterations": _ENGINE,
        "generation_batch_size": "{section}.grpo.steps_per_generation does",
        "train_sampling_strategy": "the order of the problems is a function of the seed",
        "sync_ref_model": _OBJECTIVE,
        "ref_model_mixup_alpha": _OBJECTIVE,
        "metric_for_best_model": _VALIDATION,
        "eval_accumulation_steps": _VALIDATION,
        "num_generations_eval": _VALIDATION,
        "bf16_full_eval": _VALIDATION,
        "fp16_full_eval": _VALIDATION,
        "batch_eval_metrics": _VALIDATION,
        "prediction_loss_only": _VALIDATION,
        "reward_weights": "{section}.reward does",
        "multi_objective_aggregation": "{section}.reward does",
        "data_seed": _SEED,
        "label_smoothing_factor": _OBJECTIVE,
        "neftune_noise_alpha": _DROPOUT,
        "disable_dropout": _DROPOUT,
        "router_aux_loss_coef": _ROUTER,
    },
    "trl": _BOTH
    | {
        "eval_strategy": _EVALUATED,
        "eval_steps": _EVALUATED,
        "load_best_model_at_end": _EVALUATED,
        "metric_for_best_model": _EVALUATED,
        "max_length": "responses are never cut; sampling.max_tokens bounds them",
        "truncation_mode": "responses are never cut",
        "chat_template_path": _MODEL,
        "eos_token": "model.eos_token does",
        "pad_token": _MODEL,
        "dataset_text_field": _COLLATOR,
        "dataset_kwargs": _COLLATOR,
        "dataset_num_proc": _COLLATOR,
        "packing": _COLLATOR,
        "packing_strategy": _COLLATOR,
        "eval_packing": _COLLATOR,
        "padding_free": _COLLATOR,
        "pad_to_multiple_of": _COLLATOR,
        "completion_only_loss": _COLLATOR,
        "assistant_only_loss": _COLLATOR,
    },
    "lora": dict.fromkeys(
        ("task_type", "peft_type", "peft_version", "base_model_name_or_path", "inference_mode"),
        _RUN,
    )
    | {"trainable_token_indices": "the tags' rows train wherever tags are tokens"},
}


def elsewhere(key: str) -> str | None:
    """What decides instead of a dotted key that has no effect; None for one that has.

    Every `vllm_` field is TRL's own generation.
    """
    section, _, rest = key.partition(".")
    mapping, _, field = (key if section == "lora" else rest).partition(".")
    if mapping == "grpo" and field.startswith("vllm_"):
        return _ENGINE
    where = ELSEWHERE.get(mapping, {}).get(field)
    return where and where.format(section=section)
