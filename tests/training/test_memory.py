"""Memory estimates: exact counts, activations, refusals, and the files of runs/.

Estimated activations are compared with two measurements on the CPU: the storages that autograd
saves for the backward pass, and the most bytes alive at once in a step. The second looks at the
results of every operation, so it alone sees layers that are computed again.
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
SIZES = {"vocab_size": 200, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8}
SIZES |= {"intermediate_size": 768}
KIND_SIZES = {
    "Bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "Phi3": {"pad_token_id": 0},
    "Llama": {"num_key_value_heads": 2},
}
RUN = {"num_labels": 8921, "batch_size": 4, "tokens": 1024}
GIB = 2**30

# parameters of the files of runs/ for notebook 08, and the numbers of labels of their data sets
REQUIRED = set(
    "dataset backbones tuning starts seeds tokens epochs batch_size accumulation dtype quantise"
    " gradient_checkpointing train_documents dev_documents test_documents results".split()
)
OPTIONAL = {"lora_dropout", "lora_targets", "trust_remote_code", "label_space"}
LABELS = {"eurlex57k": 4108, "mimic4-few": 3343}

# transformers has no phi3small; LLaMA 3 8B has the same widths and number of layers
ARCHITECTURE = {"phi-3-small": "llama-3-8b"}


@pytest.fixture(autouse=True)
def one_thread():
    """Small products are slower on several threads of a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config_of(kind: str):
    """A small configuration of an architecture of transformers, without dropout."""
    import transformers

    return getattr(transformers, f"{kind}Config")(**SIZES | KIND_SIZES[kind])


def model_of(kind: str, tuning: str = "full", dtype: str = "float32", checkpointing: bool = False):
    """A model ready to train, as `adapters.open_backbone` makes it, without dropout."""
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
    """Last hidden states of a batch in which one document is half as long as the other."""
    ids = torch.randint(1, 200, (BATCH, TOKENS))
    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    mask[0, TOKENS // 2 :] = 0
    return model(input_ids=ids, attention_mask=mask).last_hidden_state


def weight_storages(model) -> set[int]:
    """Pointers of the storages of parameters and buffers."""
    tensors = (*model.parameters(), *model.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def saved_bytes(model) -> int:
    """Bytes of the storages that autograd keeps for the backward pass, weights left out."""
    weights = weight_storages(model)
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states(model)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


class Alive(TorchDispatchMode):
    """Counts the bytes of storages that operations have made and that are not freed yet.

    Attributes:
        known: pointers of the storages that are counted, or are weights.
        now: bytes alive now.
        most: the most bytes alive at once.
    """

    def __init__(self, known: set[int]):
        super().__init__()
        self.known = known
        self.now = 0
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return output

    def add(self, storage) -> None:
        pointer, size = storage.data_ptr(), storage.nbytes()
        if size and pointer not in self.known:
            self.known.add(pointer)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.remove, pointer, size)

    def remove(self, pointer: int, size: int) -> None:
        self.known.discard(pointer)
        self.now -= size


def most_alive(model) -> int:
    """The most bytes alive in a forward and backward pass, beside weights and their gradients."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    alive = Alive(weight_storages(model))
    with alive:
        states(model).float().square().sum().backward()
    return alive.most


def activations(kind: str, tuning: str, dtype: str = "float32", checkpointing: bool = False) -> int:
    """The estimated bytes of activations for `states`, with one label."""
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
    saved = saved_bytes(model_of(kind, tuning, dtype))
    assert 0.9 < activations(kind, tuning, dtype) / saved < 1.4


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("kind", ["Bert", "Llama"])
def test_activations_are_near_the_most_that_is_alive_in_a_step(kind, tuning, checkpointing):
    most = most_alive(model_of(kind, tuning, checkpointing=checkpointing))
    assert 0.8 < activations(kind, tuning, checkpointing=checkpointing) / most < 1.4


@pytest.mark.parametrize("kind", ["Bert", "Llama", "Phi3"])
def test_parameters_are_those_of_the_loaded_model(kind):
    count = sum(p.numel() for p in model_of(kind).parameters())
    trained = sum(p.numel() for p in model_of(kind, "lora").parameters() if p.requires_grad)
    full = memory.estimate(config_of(kind), tuning="full", **RUN)
    assert (full.parameters, full.trained) == (count, count)
    assert (full.weights, full.gradients) == (4 * count, 4 * count)
    assert full.optimizer == 8 * count and full.adapters == 0
    lora = memory.estimate(config_of(kind), tuning="lora", dtype="bfloat16", **RUN)
    assert (lora.trained, lora.weights, lora.adapters) == (trained, 2 * count, 4 * trained)
    assert (lora.gradients, lora.optimizer) == (4 * trained, 8 * trained)
    frozen = memory.estimate(config_of(kind), tuning="frozen", **RUN)
    assert (frozen.trained, frozen.gradients, frozen.optimizer, frozen.adapters) == (0, 0, 0, 0)


def test_deepseek_v3_counts_in_seconds_and_its_experts_stay_frozen():
    from transformers import DeepseekV3Config

    config = DeepseekV3Config()
    lora = memory.estimate(config, tuning="lora", dtype="bfloat16", **RUN)
    assert abs(lora.parameters / 671e9 - 1) < 0.005
    # inputs and outputs of the five projections of one layer's attention
    heads = config.num_attention_heads
    queries = (7168 + 1536) + (1536 + heads * 192)
    keys_and_values = (7168 + 576) + (512 + heads * 256)
    output = heads * 128 + 7168
    assert lora.trained == 61 * 16 * (queries + keys_and_values + output)
    # the experts of a layer are one tensor, which bitsandbytes does not pack
    packed = memory.estimate(config, tuning="lora", dtype="bfloat16", quantise=True, **RUN)
    assert packed.weights > 0.9 * lora.weights
    assert "quantise" not in lora.remedies


def test_four_bit_weights_take_a_little_over_half_a_byte():
    config = memory.config_of("mistral-7b-v0.3")
    lora = memory.estimate(config, tuning="lora", dtype="bfloat16", quantise=True, **RUN)
    embeddings_and_norms = 32768 * 4096 + 65 * 4096
    packed = lora.parameters - embeddings_and_norms
    assert lora.weights == round(0.5625 * packed + 2 * embeddings_and_norms)


def test_the_head_is_counted_with_gradients_moments_and_table():
    lora = memory.estimate(config_of("Llama"), tuning="lora", num_planted_cells=1000, **RUN)
    assert lora.head == 16 * (2 * 8921 * 256 + 8921) + 8 * 201 + 8 * 1000
    assert lora.total == sum(getattr(lora, part) for part in memory.PARTS)


def test_options_make_activations_smaller():
    run = {"num_labels": 500, "batch_size": 4, "tokens": 4096, "window": 512, "tuning": "lora"}

    def bert(**options) -> int:
        return memory.estimate(config_of("Bert"), **run | options).activations

    assert bert(checkpointed_segments=True) < bert() / 6
    assert bert(gradient_checkpointing=True) < bert() / 2
    assert bert(tuning="frozen") < bert() / 2
    assert bert(batch_size=2) < 0.6 * bert()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0; give at least 1"),
        ({"window": 0}, "window=0"),
        ({"dtype": "int8"}, "dtype='int8' is not known"),
        ({"tuning": "some"}, "tuning='some' is not known; use one of frozen, lora, full"),
        ({"tuning": "full", "quantise": True}, "4-bit weights cannot be trained in full"),
    ],
)
def test_impossible_sizes_and_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        memory.estimate(config_of("Bert"), **RUN | options)


def test_an_architecture_without_a_class_is_refused_with_a_fix():
    from transformers import PreTrainedConfig

    message = "no class for it; estimate with .* an architecture of the same size"
    with pytest.raises(ValueError, match=message):
        memory.estimate(PreTrainedConfig(), **RUN)


CUSTOM_CLASS = """
from transformers import BertConfig, BertModel

class CustomConfig(BertConfig):
    model_type = "custom"

class CustomModel(BertModel):
    config_class = CustomConfig
"""


def test_a_class_of_the_hub_is_counted_if_it_was_trusted(tmp_path, monkeypatch):
    from transformers import dynamic_module_utils

    from plantlib.backbones import loading

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "custom"
    folder.mkdir()
    (folder / "custom.py").write_text(CUSTOM_CLASS)
    classes = {"AutoConfig": "custom.CustomConfig", "AutoModel": "custom.CustomModel"}
    fields = SIZES | {"model_type": "custom", "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(fields))
    custom = memory.estimate(loading.config_of(str(folder), trust_remote_code=True), **RUN)
    assert custom.parameters == memory.estimate(config_of("Bert"), **RUN).parameters


def test_an_estimate_is_shown_in_a_line_and_as_a_table():
    lora = memory.estimate(config_of("Llama"), tuning="lora", **RUN)
    assert repr(lora).startswith("llama, lora, float32, 4 x 1024 tokens, 8921 labels: ")
    assert "most of it activations" in repr(lora) and "\n" not in repr(lora)
    lines = lora.table().splitlines()
    assert lines[2] == "| part | memory |"
    assert lines[-1] == f"| total | {memory.readable(lora.total)} |"
    sizes = [memory.readable(n) for n in (0, 1023, 1536, 3 * 2**20, 2**44)]
    assert sizes == ["0 B", "1023 B", "1.5 KiB", "3.0 MiB", "16.00 TiB"]


def test_a_run_that_does_not_fit_is_refused_with_what_helps():
    full = memory.estimate(memory.config_of("llama-3-8b"), tuning="full", **RUN)
    memory.check(full, full.total)
    with pytest.raises(memory.MemoryExceeded) as error:
        memory.check(full, 24 * GIB)
    message = str(error.value)
    assert f"needs about {memory.readable(full.total)}" in message
    assert "24.0 GiB are available" in message and "largest part is optimizer" in message
    assert message.split(": use ")[1].startswith("tuning='lora' or several GPUs")
    lora = memory.estimate(memory.config_of("llama-3-8b"), tuning="lora", **RUN)
    remedies = "use gradient_checkpointing=True|use dtype='bfloat16' or gradient_check"
    with pytest.raises(memory.MemoryExceeded, match=remedies):
        memory.check(lora, GIB)


def test_available_memory_is_below_the_limit_of_the_cgroup(tmp_path):
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


def test_the_command_prints_the_table_or_why_the_run_does_not_fit(tmp_path, capsys, monkeypatch):
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
    config = memory.config_of(name)
    default = type(config)()
    fields = json.loads(memory.presets()[name].read_text())
    del fields["model_type"]
    assert all(getattr(default, field) != value for field, value in fields.items())
    # published sizes count the output layer, which a backbone does not have
    output_layer = config.vocab_size * config.hidden_size
    parameters = memory.estimate(config, **RUN).parameters + output_layer
    assert parameters == pytest.approx(PUBLISHED[name], rel=0.005)


@pytest.mark.parametrize("path", sorted((ROOT / "runs").glob("*.yaml")), ids=lambda path: path.stem)
def test_run_files_have_known_parameters_and_state_their_memory(path, monkeypatch, capsys):
    text = path.read_text()
    data = yaml.safe_load(text)
    if data.get("notebook") != "notebooks/08_backbones.ipynb":
        pytest.skip("a run of another notebook")
    parameters = data["parameters"]
    assert REQUIRED <= set(parameters) <= REQUIRED | OPTIONAL
    assert len(parameters["backbones"]) == 1
    comment = [line for line in text.splitlines() if line.startswith("#")]
    assert 2 <= len(comment) <= 5 and max(map(len, text.splitlines())) <= 128
    preset = path.stem.removesuffix(f"-{parameters['dataset']}")
    preset = ARCHITECTURE.get(preset, preset)
    known = preset in memory.presets()
    expected = memory.estimate(
        memory.config_of(preset if known else parameters["backbones"][0]),
        num_labels=LABELS.get(parameters["dataset"], 4108),
        batch_size=parameters["batch_size"],
        tokens=parameters["tokens"],
        tuning=parameters["tuning"],
        dtype=parameters["dtype"],
        quantise=parameters["quantise"],
        gradient_checkpointing=parameters["gradient_checkpointing"],
    )
    assert expected.total > 0
    if known:
        # the number in the comment is what the command in the comment prints
        statement = "".join(line.removeprefix("#").rstrip("\\") for line in comment[-2:])
        command, total = statement.split("-m plantlib.training.memory ")[1].split(": ")
        monkeypatch.setattr(memory, "available", lambda: 2**50)
        assert memory.main(command.split()) == 0
        assert f"| total | {total} |" in capsys.readouterr().out
        assert memory.readable(expected.total) == total


@pytest.mark.parametrize(
    "path", sorted((ROOT / "runs/accelerate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_accelerate_reads_every_launch_file(path):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    types = {"ddp": "MULTI_GPU", "ddp_cpu": "MULTI_GPU", "fsdp": "FSDP", "deepspeed": "DEEPSPEED"}
    config = load_config_from_file(str(path))
    assert config.distributed_type.value == types[path.stem] and config.num_processes == 2
    known = {action.dest for action in launch_command_parser()._actions}
    assert {*config.fsdp_config, *config.deepspeed_config} <= known
