"""Bad folders and arguments: exit code 2, one line that names them, and nothing written."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from adapter_cases import RANKS
from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
SETTINGS = [{"r": r, "lora_alpha": 8} for r in RANKS]
LLAMA = "base_model.model.model.layers.0.self_attn.q_proj"


def reconfigure(folder, **options):
    path = Path(folder) / CONFIG
    config = {**json.loads(path.read_text()), **options}
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def rewrite(folder, change):
    path = Path(folder) / WEIGHTS
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def drop(*keys):
    return lambda tensors: [tensors.pop(key) for key in keys]


def move(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def put(key, value):
    def change(tensors):
        tensors[key] = value(tensors[key]) if callable(value) else value

    return change


def with_entry(number):
    def change(tensor):
        tensor.view(-1)[3] = number
        return tensor

    return change


def empty(folder):
    for path in Path(folder).iterdir():
        path.unlink()


def name_adapters(*names):
    """Write a folder as PEFT saves adapters that are not called default."""
    for name in names:
        shutil.copytree("a", f"b/{name}")
    for name in (CONFIG, WEIGHTS):
        Path("b", name).unlink()


def name_keys(name):
    """Rename keys to those of the model's own state."""
    for key in load_file(Path("b", WEIGHTS)):
        if key.endswith("lora_A.weight"):
            rewrite("b", move(key, key.replace("lora_A.", f"lora_A.{name}.")))


def point(name, to=None):
    """Replace the weights by a git-lfs pointer, as in a clone without git-lfs."""
    Path("b", name).unlink()
    oid = "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    pointer = f"version https://git-lfs.github.com/spec/v1\n{oid}\nsize 12345\n"
    Path("b", to or name).write_text(pointer)


def shard():
    for number in (1, 2):
        shutil.copy(f"b/{WEIGHTS}", f"b/adapter_model-0000{number}-of-00002.safetensors")
    Path("b", WEIGHTS).unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named", "expectation"),
    [
        (("--samples", "1,2"), "--samples='1,2'", "3 numbers"),
        (("--samples", "1,2,3,4"), "--samples='1,2,3,4'", "3 numbers"),
        (("--samples", "1,-2,3"), "--samples='1,-2,3'", "at least 0"),
        (("--samples", "1,many,3"), "--samples='1,many,3'", "numbers"),
        (("--samples", "1,,3"), "--samples='1,,3'", "numbers"),
        (("--samples", "0,0,0"), "--samples='0,0,0'", "positive"),
        (("--samples", "1,nan,3"), "--samples='1,nan,3'", "finite"),
        (("--rule", "raflor"), "--rule='raflor'", "did you mean 'raflora'"),
        (("--rule", "raflora:canonical=true"), "canonical", "canonicalize"),
        (("--rank-levels", "2,four"), "--rank-levels='2,four'", "ranks"),
        (("--rank-levels", "0,2"), "--rank-levels='0,2'", "at least 1"),
        (("--rank-levels", "2,8"), "rank of model.embed_tokens in b=4", "in --rank-levels, [2, 8]"),
        (
            ("--rank-levels", "2,4,8,17"),
            "--rank-levels=[2, 4, 8, 17]",
            "from 1 to 16, the largest",
        ),
        (("--target-rank", "0"), "--target-rank=0", "at least 1"),
        (("--target-rank", "9"), "--target-rank=9", "at most the rank of the aggregated update, 8"),
        (("--empty-partition", "keep"), "--empty-partition='keep'", "carry"),
        (("--device", "tpu"), "--device='tpu'", "cpu"),
        (("--previous", "nowhere"), "folder='nowhere'", "PEFT adapter"),
        (("--previous", "a"), "in the last adapter a=2", "the highest rank level, 8"),
        (
            ("--rank-levels", "2,4,8,16"),
            "model.embed_tokens: --previous=None: expected the last global adapter, because no "
            "client in this cohort sends components 9 to 16 and --empty-partition carry keeps",
            "in the first round, which has no previous adapter, choose --empty-partition zero",
        ),
        (
            ("--samples", "1,1,0", "--rule", "rbla"),
            "--previous=None",
            "components 5 to 8",
        ),
        (
            ("--rank-levels", "2,4,8,16", "--empty-partition", "error"),
            "--empty-partition='error'",
            "a contributor to every partition",
        ),
        (("--seed", "-1"), "--seed=-1", "at least 0"),
        (("--rule", "ffa"), "model.embed_tokens in b: lora_A=", "the same A for all clients"),
        (
            ("--rule", "ffa", "--samples", "1,0,2"),
            "model.embed_tokens in c: lora_A=",
            "the same A for all clients",
        ),
    ],
    ids=str,
)
def test_bad_arguments(refused, folders, arguments, named, expectation):
    line = refused("a", "b", "c", "--out", "out", *arguments)
    assert named in line
    assert expectation in line


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda: reconfigure("b", r="absent"), "b/adapter_config.json: r=None"),
        (lambda: reconfigure("b", r=3), "(4, 24): expected rank 3"),
        (lambda: reconfigure("b", rank_pattern={"layers.1.mlp.down_proj": 3}), "expected rank 3"),
        (lambda: reconfigure("b", lora_alpha="x"), "lora_alpha='x'"),
        (lambda: reconfigure("b", base_model_name_or_path="other"), "base_model_name_or_path='oth"),
        (lambda: reconfigure("b", revision="v2"), "revision='v2'"),
        (lambda: reconfigure("b", task_type="SEQ_CLS"), "task_type='SEQ_CLS': expected 'CAUSAL"),
        (lambda: reconfigure("b", fan_in_fan_out=True), "fan_in_fan_out=True: expected False"),
        (lambda: reconfigure("b", bias="all"), "bias='all'"),
        (lambda: reconfigure("b", use_dora=True), "use_dora=True"),
        (lambda: reconfigure("b", init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (lambda: reconfigure("b", peft_type="LOHA"), "peft_type='LOHA'"),
        (lambda: reconfigure("b", target_modules=["q_proj"]), "target_modules=['q_proj']"),
        (lambda: Path("b", CONFIG).write_text('{"r": 4,'), "valid JSON"),
        (lambda: Path("b", CONFIG).write_bytes(b"\xff\xfe"), "valid JSON"),
        (lambda: Path("b", CONFIG).write_text("[" * 100_000), "valid JSON"),
        (lambda: Path("b", CONFIG).write_text("[4]"), "a JSON object, not list"),
        (lambda: Path("b", CONFIG).unlink(), "it has no adapter_config.json"),
        (lambda: Path("b", WEIGHTS).unlink(), "it has no adapter_model.safetensors"),
        (lambda: shutil.rmtree("b"), "folder='b'"),
        (lambda: name_adapters("clinic"), "in a subfolder: give b/clinic)"),
        (lambda: name_adapters("x", "y"), "give one of b/x, b/y)"),
        (lambda: empty("b"), "it has no adapter_config.json; it is empty)"),
        (lambda: Path("b", CONFIG).rename("b/config.json"), "seems to hold a whole model"),
        (lambda: point(CONFIG), "b/adapter_config.json': expected the file itself, not a git-lfs"),
        (lambda: point(WEIGHTS), "weights='b/adapter_model.safetensors': expected the file itself"),
        (
            lambda: point(WEIGHTS, "adapter_model.bin"),
            "b/adapter_model.bin': expected the file",
        ),
        (lambda: shard(), "not 2 shards"),
        (lambda: name_keys("clinic"), "without the name of the adapter"),
    ],
)
def test_bad_configurations_and_folders(refused, folders, spoil, named):
    spoil()
    assert named in refused("a", "b", "c", "--out", "out")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put(f"{LLAMA}.lora_A.weight", with_entry(float("nan"))), "lora_A.weight=nan"),
        (put(f"{LLAMA}.lora_B.weight", with_entry(float("inf"))), "lora_B.weight=inf"),
        (
            drop(f"{LLAMA}.lora_B.weight"),
            "'base_model.model.model.layers.0.self_attn.q_proj.lora_B",
        ),
        (
            drop(f"{LLAMA}.lora_A.weight"),
            "'base_model.model.model.layers.0.self_attn.q_proj.lora_A",
        ),
        (
            drop(f"{LLAMA}.lora_A.weight", f"{LLAMA}.lora_B.weight"),
            "1 missing (model.layers.0.self",
        ),
        (move(f"{LLAMA}.lora_A.weight", f"{LLAMA}.lora_A.default.weight"), "lora_A.default.weight"),
        (move(f"{LLAMA}.lora_A.weight", "x.q_proj.lora_A.weight"), "starts with 'base_model.model"),
        (put(f"{LLAMA}.lora_A.weight", lambda a: a[:3].clone()), "(3, 16): expected rank 4"),
        (put(f"{LLAMA}.lora_A.weight", lambda a: a.T.contiguous()), "(16, 4): expected rank 4"),
        (put(f"{LLAMA}.lora_B.weight", lambda b: b[:9].clone()), "shape of model.layers.0.self"),
        (put(f"{LLAMA}.lora_A.weight", lambda a: a.long()), "I64"),
        (put(f"{LLAMA}.lora_A.weight", lambda a: a[:, :0].clone()), "not empty"),
        (move(f"{LLAMA}.lora_A.weight", f"{LLAMA}.lora_magnitude_vector"), "lora_magnitude_vector"),
        (lambda t: t.update({f"{LLAMA}.lora_B.bias": torch.ones(16)}), "lora_B.bias"),
        (lambda t: t.update({f"{LLAMA}.bias": torch.ones(16)}), "q_proj.bias"),
        (lambda t: t.update({"base_model.model.score.weight": torch.ones(2)}), "score.weight"),
        (lambda t: t.update({f"{LLAMA}.base_layer.lora_A.weight": torch.ones(4, 4)}), "inside of"),
        (lambda t: [t.pop(key) for key in list(t) if ".lora_" in key], "pair of LoRA factors"),
    ],
)
def test_bad_tensors(refused, folders, change, named):
    rewrite("b", change)
    line = refused("a", "b", "c", "--out", "out")
    assert named in line
    assert "b/adapter_model.safetensors" in line or "'b'" in line or "in b" in line


def test_extra_tensors_that_only_one_client_has(refused, folders):
    rewrite("b", lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(24, 16)}))
    line = refused("a", "b", "c", "--out", "out")
    assert "folder='b': expected the modules and keys of a: " in line
    assert "1 unexpected (base_model.model.lm_head.weight)" in line


def test_extra_tensors_of_another_shape(refused, folders):
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    rewrite("b", put(key, lambda w: w[:-1].clone()))
    line = refused("a", "b", "c", "--out", "out")
    assert f"shape of {key} in b=(23, 16): expected (24, 16), as in a" in line


def test_convolutions_of_another_kind(refused, clients, here):
    for name, folder in zip("ab", clients("conv", *SETTINGS[:2]), strict=True):
        shutil.copytree(folder, here / name)
    rewrite(
        "b", put("base_model.model.plane.lora_B.weight", lambda b: b.expand(8, 4, 3, 3).clone())
    )
    line = refused("a", "b", "--out", "out")
    assert "plane.lora_B.weight=(8, 4, 3, 3): expected a kernel of size 1" in line


def test_a_square_module_with_swapped_a_and_b_is_detected_by_name(refused, folders):
    """16 x 16 at rank 4: A is (4, 16) and B (16, 4), which only the names distinguish."""
    rewrite("b", put(f"{LLAMA}.lora_B.weight", lambda b: b.T.contiguous()))
    assert "lora_B.weight=(4, 16): expected rank 4" in refused("a", "b", "c", "--out", "out")


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_weights(refused, folders, kept):
    content = Path("b", WEIGHTS).read_bytes()
    Path("b", WEIGHTS).write_bytes(content[:kept])
    line = refused("a", "b", "c", "--out", "out")
    assert "weights='b/adapter_model.safetensors': expected a whole safetensors file" in line


@pytest.mark.parametrize("content", [b"\x00" * 64, b"not tensors at all", b"\xff" * 100])
def test_garbage_weights(refused, folders, content):
    Path("b", WEIGHTS).write_bytes(content)
    assert "expected a whole safetensors file" in refused("a", "b", "c", "--out", "out")


def test_a_pickle_is_not_read(refused, folders):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (Path("exploded"),))

    Path("b", WEIGHTS).unlink()
    Path("b", "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    line = refused("a", "b", "c", "--out", "out")
    assert "weights='b/adapter_model.bin'" in line
    assert "pickle" in line
    shutil.move("b/adapter_model.bin", f"b/{WEIGHTS}")
    assert "expected a whole safetensors file" in refused("a", "b", "c", "--out", "out")


def test_a_previous_adapter_of_other_modules(refused, folders, clients):
    shutil.copytree(clients("gpt2", *SETTINGS)[2], "other")
    reconfigure("other", fan_in_fan_out=False)
    line = refused("a", "b", "c", "--out", "out", "--previous", "other")
    assert "folder='other': expected the modules and keys of a: " in line
    assert "missing (" in line
    assert "unexpected (" in line


def test_products_that_overflow(refused, folders):
    def enlarge(tensors):
        for key, tensor in tensors.items():
            tensors[key] = tensor * 1e200

    rewrite("b", enlarge)
    line = refused("a", "b", "c", "--out", "out")
    assert "largest singular value of " in line
    assert "for torch.float64" in line


def test_no_folder_is_refused_by_the_parser(fedlora_aggregate, here):
    outcome = fedlora_aggregate("--out", "out")
    assert outcome.code == 2
    assert "CLIENT_DIR" in outcome.err
    assert not list(here.iterdir())


def test_a_first_round_of_a_sampled_cohort_does_as_the_message_says(fedlora_aggregate, folders):
    arguments = ("a", "b", "--rank-levels", "2,4,8", "--out", "out")
    refusal = fedlora_aggregate(*arguments).err
    (option,) = re.findall(r"choose (--empty-partition zero)$", refusal.strip())
    assert fedlora_aggregate(*arguments, *option.split()).code == 0
    again = fedlora_aggregate(*arguments[:-1], "next", "--previous", "out")
    assert again.code == 0


def test_numbers_of_a_client_without_samples_are_not_left_out_in_silence(refused, folders):
    rewrite("b", put(f"{LLAMA}.lora_A.weight", with_entry(float("nan"))))
    line = refused("a", "b", "c", "--out", "out", "--samples", "1,0,2")
    assert "lora_A.weight=nan: expected finite entries (1 of 64 are not)" in line
    assert line.endswith("its client has 0 samples and takes no part: leave b out")


def test_a_federation_in_which_no_client_trained(refused, folders):
    def untrained(tensors):
        for key, tensor in tensors.items():
            if ".lora_B" in key or key.endswith("lora_embedding_A"):
                tensor.zero_()

    for name in "ab":
        rewrite(name, untrained)
    line = refused("a", "b", "--out", "out", "--empty-partition", "zero")
    assert "folders=['a', 'b']: expected a client that has trained" in line


def test_names_within_values_are_not_translated(refused, folders):
    Path("rule=previous").mkdir()
    line = refused("a", "rule=previous", "--out", "out")
    assert line.startswith("fedlora-sim: folder='rule=previous': expected")
