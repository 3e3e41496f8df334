"""Memory: exact counts on the meta device, activations against what autograd keeps, refusals, and
every file of runs/.

Two measurements on the CPU: the storages that autograd saves for the backward pass, and the most
bytes that are alive at once in a step (every operation's results, through a dispatch mode), which
is the only one that sees layers computed again.
"""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plantlib.backbones import adapters
from plantlib.backbones.adapters import LoraOptions
from plantlib.training import memory

ROOT = Path(__file__).resolve().parents[2]
BATCH, TOKENS = 2, 256
SIZES = {
    "vocab_size": 200,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 768,
}
ASKED = {"num_labels": 8921, "batch_size": 4, "tokens": 1024}
PARAMETERS = {
    "dataset",
    "backbones",
    "tuning",
    "starts",
    "seeds",
    "tokens",
    "epochs",
    "batch_size",
    "accumulation",
    "dtype",
    "quantise",
    "gradient_checkpointing",
    "train_documents",
    "dev_documents",
    "test_documents",
    "results",
}
OPTIONAL = {"lora_dropout", "lora_targets", "trust_remote_code", "label_space"}
LABELS = {"eurlex57k": 4108, "mimic4-few": 3343}
# phi3small is not in transformers; LLaMA 3 8B has its widths and number of layers
ARCHITECTURE = {"phi-3-small": "llama-3-8b"}


@pytest.fixture(autouse=True)
def one_thread():
    """Small products are slower on several threads of a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config_of(kind: str, **sizes):
    import transformers

    own = {
        "Bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "Phi3": {"pad_token_id": 0},
    }
    own |= {"Llama": {"num_key_value_heads": 2}}
    return getattr(transformers, f"{kind}Config")(**SIZES | own.get(kind, {}) | sizes)


def model_of(kind: str, tuning: str = "full", dtype: str = "float32", checkpointing: bool = False):
    """A model ready to train as `tuning.open_backbone` makes it, without dropout."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config_of(kind)).to(getattr(torch, dtype))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if tuning == "lora":
        model = adapters.add_lora(model, LoraOptions(dropout=0.0))
        if checkpointing:
            model.enable_input_require_grads()
    return model.train()


def states(model) -> torch.Tensor:
    """Last hidden states of a batch in which one document is half as long."""
    ids, mask = torch.randint(1, 200, (BATCH, TOKENS)), torch.ones(BATCH, TOKENS, dtype=torch.long)
    mask[0, TOKENS // 2 :] = 0
    return model(input_ids=ids, attention_mask=mask).last_hidden_state


def own_storages(model) -> set[int]:
    return {
        tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())
    }


def saved_bytes(model) -> int:
    """Bytes of the storages that autograd keeps for the backward pass, weights left out."""
    own, kept = own_storages(model), {}

    def pack(tensor):
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states(model)
    return sum(
        tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own
    )


class Alive(TorchDispatchMode):
    """Bytes of all storages that operations have made and nobody has dropped yet, and the most
    there were.
    """

    def __init__(self, known: set[int]):
        super().__init__()
        self.known, self.now, self.most = known, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor.untyped_storage())
        return out

    def see(self, storage) -> None:
        pointer, size = storage.data_ptr(), storage.nbytes()
        if size and pointer not in self.known:
            self.known.add(pointer)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.forget, pointer, size)

    def forget(self, pointer: int, size: int) -> None:
        self.known.discard(pointer)
        self.now -= size


def most_alive(model) -> int:
    """The most bytes alive in a forward and backward pass beside weights and their gradients."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    alive = Alive(own_storages(model))
    with alive:
        states(model).float().square().sum().backward()
    return alive.most


def activations(kind: str, tuning: str, dtype: str = "float32", checkpointing: bool = False) -> int:
    return memory.estimate(
        config_of(kind),
        num_labels=1,
        batch_size=BATCH,
        tokens=TOKENS,
        tuning=tuning,
        lora=LoraOptions(dropout=0.0),
        dtype=dtype,
        gradient_checkpointing=checkpointing,
    ).activations


@pytest.mark.parametrize(
    ("kind", "tuning", "dtype"),
    [
        ("Bert", "full", "float32"),
        ("Bert", "lora", "float32"),
        ("Bert", "lora", "bfloat16"),
        ("Llama", "full", "float32"),
        ("Llama", "full", "bfloat16"),
        ("Llama", "lora", "float32"),
        ("Llama", "lora", "bfloat16"),
        ("Phi3", "lora", "float32"),
    ],
)
def test_activations_are_near_what_autograd_keeps(kind, tuning, dtype):
    assert 0.9 < activations(kind, tuning, dtype) / saved_bytes(model_of(kind, tuning, dtype)) < 1.4


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("kind", ["Bert", "Llama"])
def test_activations_are_near_the_most_that_is_alive_in_a_step(kind, tuning, checkpointing):
    most = most_alive(model_of(kind, tuning, checkpointing=checkpointing))
    assert 0.8 < activations(kind, tuning, checkpointing=checkpointing) / most < 1.4


@pytest.mark.parametrize("kind", ["Bert", "Llama", "Phi3"])
def test_parameters_are_those_of_the_loaded_model(kind):
    full, lora = model_of(kind), model_of(kind, "lora")
    count = sum(p.numel() for p in full.parameters())
    trained = sum(p.numel() for p in lora.parameters() if p.requires_grad)
    found = memory.estimate(config_of(kind), tuning="full", **ASKED)
    assert (found.parameters, found.trained, found.weights, found.gradients) == (
        count,
        count,
        4 * count,
        4 * count,
    )
    assert found.optimizer == 8 * count and found.adapters == 0
    found = memory.estimate(config_of(kind), tuning="lora", dtype="bfloat16", **ASKED)
    assert (found.trained, found.weights, found.adapters) == (trained, 2 * count, 4 * trained)
    assert (found.gradients, found.optimizer) == (4 * trained, 8 * trained)
    found = memory.estimate(config_of(kind), tuning="frozen", **ASKED)
    assert (found.trained, found.gradients, found.optimizer, found.adapters) == (0, 0, 0, 0)


def test_deepseek_v3_counts_in_seconds_and_its_experts_stay_frozen():
    from transformers import DeepseekV3Config

    config = DeepseekV3Config()
    found = memory.estimate(config, tuning="lora", dtype="bfloat16", **ASKED)
    assert abs(found.parameters / 671e9 - 1) < 0.005
    wide = config.num_attention_heads
    latent = (
        (7168 + 1536)
        + (1536 + wide * 192)
        + (7168 + 576)
        + (512 + wide * 256)
        + (wide * 128 + 7168)
    )
    assert found.trained == 61 * 16 * latent
    # experts are one tensor a layer, which bitsandbytes leaves as it is
    assert (
        memory.estimate(config, tuning="lora", dtype="bfloat16", quantise=True, **ASKED).weights
        > 0.9 * found.weights
    )
    assert "quantise" not in found.remedies


def test_four_bit_weights_take_a_little_over_half_a_byte():
    found = memory.estimate(
        memory.config_of("mistral-7b-v0.3"), tuning="lora", dtype="bfloat16", quantise=True, **ASKED
    )
    table = 32768 * 4096 + 65 * 4096
    assert found.weights == round(0.5625 * (found.parameters - table) + 2 * table)


def test_the_head_is_counted_with_gradients_moments_and_table():
    found = memory.estimate(config_of("Llama"), tuning="lora", num_planted_cells=1000, **ASKED)
    assert found.head == 16 * (2 * 8921 * 256 + 8921) + 8 * 201 + 8 * 1000
    assert found.total == sum(getattr(found, part) for part in memory.PARTS)


def test_options_make_activations_smaller():
    ask = {"num_labels": 500, "batch_size": 4, "tokens": 4096, "window": 512, "tuning": "lora"}
    whole = memory.estimate(config_of("Bert"), **ask).activations
    segments = memory.estimate(config_of("Bert"), checkpointed_segments=True, **ask).activations
    assert segments < whole / 6
    assert (
        memory.estimate(config_of("Bert"), gradient_checkpointing=True, **ask).activations
        < whole / 2
    )
    assert memory.estimate(config_of("Bert"), **ask | {"tuning": "frozen"}).activations < whole / 2
    assert memory.estimate(config_of("Bert"), **ask | {"batch_size": 2}).activations < 0.6 * whole


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size=0; give at least 1"),
        ({"window": 0}, "window=0"),
        ({"dtype": "int8"}, "dtype='int8' is not known"),
        ({"tuning": "some"}, "tuning='some' is not known; use one of frozen, lora, full"),
        ({"tuning": "full", "quantise": True}, "4-bit weights cannot be trained in full"),
    ],
)
def test_sizes_that_no_run_can_have_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        memory.estimate(config_of("Bert"), **ASKED | options)


def test_an_architecture_without_a_class_is_refused_with_the_way_out():
    from transformers import PreTrainedConfig

    with pytest.raises(
        ValueError, match="no class for it; estimate with .* an architecture of the same size"
    ):
        memory.estimate(PreTrainedConfig(), **ASKED)


OWN_CLASS = """
from transformers import BertConfig, BertModel

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertModel):
    config_class = OwnConfig
"""


def test_a_class_of_the_hub_is_counted_when_it_was_trusted(tmp_path, monkeypatch):
    from transformers import dynamic_module_utils

    from plantlib.backbones import loading

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "own").mkdir()
    (tmp_path / "own/own.py").write_text(OWN_CLASS)
    classes = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (tmp_path / "own/config.json").write_text(
        json.dumps(SIZES | {"model_type": "own", "auto_map": classes})
    )
    config = loading.config_of(str(tmp_path / "own"), trust_remote_code=True)
    assert (
        memory.estimate(config, **ASKED).parameters
        == memory.estimate(config_of("Bert"), **ASKED).parameters
    )


def test_an_estimate_is_shown_in_a_line_and_as_a_table():
    found = memory.estimate(config_of("Llama"), tuning="lora", **ASKED)
    assert repr(found).startswith("llama, lora, float32, 4 x 1024 tokens, 8921 labels: ")
    assert "most of it activations" in repr(found) and "\n" not in repr(found)
    lines = found.table().splitlines()
    assert (
        lines[2] == "| part | memory |"
        and lines[-1] == f"| total | {memory.readable(found.total)} |"
    )
    shown = [memory.readable(n) for n in (0, 1023, 1536, 3 * 2**20, 2**44)]
    assert shown == ["0 B", "1023 B", "1.5 KiB", "3.0 MiB", "16.00 TiB"]


def test_a_run_that_does_not_fit_is_refused_with_what_helps():
    found = memory.estimate(memory.config_of("llama-3-8b"), tuning="full", **ASKED)
    memory.check(found, found.total)
    with pytest.raises(memory.MemoryExceeded) as error:
        memory.check(found, 24 * 2**30)
    said = str(error.value)
    assert (
        f"needs about {memory.readable(found.total)}" in said and "24.0 GiB are available" in said
    )
    assert "largest part is optimizer" in said and said.split(": use ")[1].startswith(
        "tuning='lora' or several GPUs"
    )
    lora = memory.estimate(memory.config_of("llama-3-8b"), tuning="lora", **ASKED)
    with pytest.raises(
        memory.MemoryExceeded,
        match="use gradient_checkpointing=True|use dtype='bfloat16' or gradient_check",
    ):
        memory.check(lora, 2**30)


def test_available_memory_is_below_the_limit_of_the_group(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert memory.available("cpu", tmp_path) == 8000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert memory.available("cpu", tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("4096000\n")
    (group / "memory.current").write_text("96000\n")
    assert memory.available("cpu", tmp_path) == 4000000
    assert memory.available("cpu") > 0


def test_the_command_prints_the_table_and_tells_what_does_not_fit(tmp_path, capsys, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama"} | SIZES))
    monkeypatch.setattr(memory, "available", lambda: 2**40)
    assert memory.main([str(path), "--labels", "50", "--tokens", "128", "--batch", "2"]) == 0
    assert "| total |" in capsys.readouterr().out
    monkeypatch.setattr(memory, "available", lambda: 2**20)
    assert memory.main([str(path), "--labels", "50"]) == 1
    assert "this run needs about" in capsys.readouterr().err
    path.write_text("{}")
    assert memory.main([str(path), "--labels", "50"]) == 1
    assert "has no model_type" in capsys.readouterr().err


PUBLISHED = {
    "mistral-7b-v0.3": 7.25e9,
    "llama-3-8b": 8.03e9,
    "phi-3-mini": 3.82e9,
    "deepseek-v3": 671e9,
    "deepseek-llm-7b": 6.91e9,
}


@pytest.mark.parametrize("name", sorted(memory.presets()))
def test_presets_have_the_published_size_and_hold_only_what_differs_from_their_class(name):
    config, fields = memory.config_of(name), json.loads(memory.presets()[name].read_text())
    assert all(
        getattr(type(config)(), key) != value
        for key, value in fields.items()
        if key != "model_type"
    )
    head = config.vocab_size * config.hidden_size  # the output layer, which a backbone leaves out
    assert memory.estimate(config, **ASKED).parameters + head == pytest.approx(
        PUBLISHED[name], rel=0.005
    )


@pytest.mark.parametrize("path", sorted((ROOT / "runs").glob("*.yaml")), ids=lambda path: path.stem)
def test_runs_ask_for_known_parameters_and_state_the_memory_they_need(path, monkeypatch, capsys):
    text = path.read_text()
    data = yaml.safe_load(text)
    if data["notebook"] != "notebooks/08_backbones.ipynb":
        pytest.skip("a run of another notebook")
    asked = data["parameters"]
    assert PARAMETERS <= set(asked) <= PARAMETERS | OPTIONAL and len(asked["backbones"]) == 1
    comment = [line for line in text.splitlines() if line.startswith("#")]
    assert 2 <= len(comment) <= 5 and max(map(len, text.splitlines())) <= 128
    preset = path.stem.removesuffix(f"-{asked['dataset']}")
    preset = ARCHITECTURE.get(preset, preset)
    config = memory.config_of(preset if preset in memory.presets() else asked["backbones"][0])
    found = memory.estimate(
        config,
        num_labels=LABELS.get(asked["dataset"], 4108),
        batch_size=asked["batch_size"],
        tokens=asked["tokens"],
        tuning=asked["tuning"],
        dtype=asked["dtype"],
        quantise=asked["quantise"],
        gradient_checkpointing=asked["gradient_checkpointing"],
    )
    assert found.total > 0
    if preset in memory.presets():
        # the number in the comment is what the command in the comment prints
        stated = "".join(line.removeprefix("#").rstrip("\\") for line in comment[-2:])
        command, total = stated.split("-m plantlib.training.memory ")[1].split(": ")
        monkeypatch.setattr(memory, "available", lambda: 2**50)
        assert memory.main(command.split()) == 0
        assert (
            f"| total | {total} |" in capsys.readouterr().out
            and memory.readable(found.total) == total
        )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "runs/accelerate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_accelerate_reads_every_launch_file(path, monkeypatch):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(path))
    kind = {"ddp": "MULTI_GPU", "ddp_cpu": "MULTI_GPU", "fsdp": "FSDP", "deepspeed": "DEEPSPEED"}[
        path.stem
    ]
    assert config.distributed_type.value == kind and config.num_processes == 2
    known = {action.dest for action in launch_command_parser()._actions}
    assert {*config.fsdp_config, *config.deepspeed_config} <= known
