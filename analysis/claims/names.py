"""Names of rules and partitions, as claims on federations of three rank levels speak of them."""

RULE_NAMES = {"fedavg": "FedAvg", "zero_pad": "zero padding", "raflora": "raFLoRA"}
PARTITIONS = ("partition 1", "partition 2", "partition 3")
HIGHER = PARTITIONS[1:]
"""The partitions above the shared one."""
