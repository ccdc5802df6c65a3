"""What a PEFT configuration may say besides plain LoRA, and which of it is refused by name.

The rules average `scaling * B @ A`. An option under which a layer's update is anything else, or
under which the clients' base weights are no longer the model's own, is refused; so is an option
that this version does not know, unless it is off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlora_sim.errors import expected

# Options that change the update, what it is added to, or where it acts; off when empty.
REFUSED = {
    "alora_invocation_tokens": "aLoRA acts on some tokens only",
    "arrow_config": "Arrow routes every token to its own mixture of adapters",
    "corda_config": "CorDA changes the base weights",
    "ensure_weight_tying": "tied adapters are one tensor under two names",
    "eva_config": "EVA is an initialisation that differs from client to client",
    "kasa_config": "KaSA changes the base weights and puts a diagonal between B and A",
    "layer_replication": "replicated layers are not the base model's",
    "loftq_config": "LoftQ changes the base weights",
    "lora_bias": "a bias on lora_B is outside of B @ A",
    "lora_ga_config": "LoRA-GA changes the base weights",
    "megatron_config": "Megatron shards the factors",
    "monteclora_config": "MonteCLoRA samples its factors",
    "trainable_token_indices": "trained tokens are not averaged by the rules",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "use_dora": "DoRA's magnitudes are outside of B @ A",
    "use_qalora": "QALoRA pools its inputs",
    "velora_config": "VeLoRA trains on compressed activations",
}

# Initialisations that leave the base weights alone and train both factors.
PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal")

# Options that are read, passed on, or without a bearing on the weights.
KNOWN = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
    "use_rslora",
}


def check_plain_lora(source: str, options: Mapping[str, Any]) -> None:
    """Refuse every variant whose weights the rules do not cover.

    Args:
        source: the file that the options come from, for the message.
        options: a configuration as PEFT writes it.

    Raises:
        InputError: naming the file, the option and why it is refused.
    """
    peft_type = options.get("peft_type")
    if peft_type != "LORA":
        raise expected(
            f"{source}: peft_type", peft_type, "'LORA', the only type that is aggregated"
        )
    for name, reason in REFUSED.items():
        if options.get(name):
            raise expected(f"{source}: {name}", options[name], f"plain LoRA ({reason})")
    initialisation = options.get("init_lora_weights", True)
    if initialisation not in PLAIN_INITIALISATIONS:
        expectation = (
            "an initialisation that leaves the base weights alone and trains both factors: "
            "true, false, 'gaussian' or 'orthogonal'"
        )
        raise expected(f"{source}: init_lora_weights", initialisation, expectation)
    for name in sorted(set(options) - KNOWN - set(REFUSED)):
        if options[name]:
            reason = "the option left off (it is not known here, so its weights may not be B @ A)"
            raise expected(f"{source}: {name}", options[name], reason)
