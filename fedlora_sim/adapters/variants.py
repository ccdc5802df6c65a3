"""What every option of a PEFT configuration means for an aggregation, and which are refused.

The rules average `scaling * B @ A` on the weights of one base model. An option under which a
layer's update is anything else, or under which a client's base weights are no longer the model's
own, is refused by name; so is an option that this version does not know, unless it is off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlora_sim.errors import expected

# Options that change the update, what it is added to, or where it acts; off when empty.
REFUSED = {
    "arrow_config": "Arrow routes every token to its own mixture of adapters",
    "kasa_config": "KaSA changes the base weights and puts a diagonal between B and A",
    "lora_bias": "a bias on lora_B is outside of B @ A",
    "megatron_config": "Megatron shards the factors",
    "monteclora_config": "MonteCLoRA samples its factors",
    "use_bdlora": "BD-LoRA's factors are block-diagonal, and an average of products is not",
    "use_dora": "DoRA's magnitudes are outside of B @ A",
    "use_qalora": "QALoRA multiplies pooled inputs, so its update is not B @ A",
    "velora_config": "VeLoRA keeps a random projection of every client beside the factors",
}

# Initialisations that leave the base weights unchanged and train both factors.
PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
REFUSED_INITIALISATIONS = {
    "pissa": "PiSSA takes the leading singular vectors out of the base weights",
    "olora": "OLoRA takes its first update out of the base weights",
    "corda": "CorDA takes singular vectors out of the base weights",
    "lora_ga": "LoRA-GA takes its first update out of the base weights",
    "loftq": "LoftQ quantises the base weights",
    "mica": "MiCA freezes B, which the aggregated adapter would not keep",
}

# Options that say which model the update belongs to, how it is stored and where it acts: clients
# must agree on them; with the value that an absent option means.
SHARED: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "bias": "none",
    "ensure_weight_tying": False,
    "fan_in_fan_out": False,
    "layer_replication": None,
    "task_type": None,
}

# Options under which nothing can be merged into the base weights, and why.
UNMERGEABLE = {
    "alora_invocation_tokens": "aLoRA acts on a part of the tokens only",
    "layer_replication": "replicated layers share their base weights",
}

# Options that are read and written anew: base model, ranks, scalings, and how an adapter starts.
WRITTEN = {
    "alpha_pattern",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_alpha",
    "lora_ga_config",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "use_rslora",
}

# Options that the output takes from the first client. They select modules, on which the files must
# agree, act in training only, or do nothing without an option that is refused.
CARRIED = {
    "auto_mapping",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "trainable_token_indices",  # the same tokens, in any order
}

KNOWN = WRITTEN | CARRIED | set(SHARED)


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
        kind = str(initialisation).lower()
        reasons = [why for name, why in REFUSED_INITIALISATIONS.items() if kind.startswith(name)]
        expectation = (
            "an initialisation that leaves the base weights unchanged and trains both factors: "
            "true, false, 'gaussian', 'orthogonal' or 'eva'" + "".join(f" ({w})" for w in reasons)
        )
        raise expected(f"{source}: init_lora_weights", initialisation, expectation)
    for name in sorted(set(options) - KNOWN - set(REFUSED)):
        if options[name]:
            reason = "the option left off (it is not known here, so its weights may not be B @ A)"
            raise expected(f"{source}: {name}", options[name], reason)
