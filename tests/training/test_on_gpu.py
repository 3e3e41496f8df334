"""The main road on a GPU: what fit, predict, explain, save and resume give there is what they give
on a CPU, within TF32's digits; and on the CPU, that the road goes through kernels and devices.
"""

from __future__ import annotations

import pytest
import torch

from companion import viewer
from plantlib import PlantModel, RunConfig
from plantlib.backbones import windows
from plantlib.kernels import machine
from plantlib.planting import l2r
from plantlib.teacher import mig
from plantlib.training import artefacts, ingredients, runs, train
from plantlib.training.options import TeacherConfig, TrainConfig
from tests.tolerances import near
from tests.training.test_train import fresh_model, train_it, weights, without_times

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
# a GPU multiplies in TF32, which has float16's digits
TF32 = {"operations": 4, "dtype": torch.float16}
DOCUMENT = "the patient was seen with cough and smoke, and again with rash"


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """A model that was planted and trained where `fit` trains, with its backbone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANT_HOME", str(tmp_path_factory.mktemp("home")))
        config = RunConfig(train=TrainConfig(epochs=1, batch_size=8))
        _, model = runs.run_start(prepared, "lookup+linear", config=config, progress=False)
    return model.attach_backbone(artefacts.load_backbone(prepared)).eval()


class TestOnAGpu:
    pytestmark = ON_GPU

    def test_fit_trains_and_predicts_there(self, trained, prepared):
        assert trained.device.type == "cuda"
        texts = prepared.corpus.texts[80:]
        there = trained.predict(texts, k=prepared.corpus.L)
        here = trained.cpu().predict(texts, k=prepared.corpus.L)
        trained.cuda()
        for ours, theirs in zip(there, here, strict=True):
            assert dict(ours) == near(dict(theirs), **TF32)

    def test_explanations_are_those_of_a_cpu(self, trained):
        there = trained.explain(DOCUMENT, "lung")
        here = trained.cpu().explain(DOCUMENT, "lung")
        trained.cuda()
        assert there.parts == near(here.parts, **TF32)
        assert list(there.attention) == near(list(here.attention), **TF32)

    def test_a_saved_model_is_the_same(self, trained, tmp_path):
        trained.save_pretrained(tmp_path / "model")
        read = PlantModel.from_pretrained(tmp_path / "model")
        for name, value in trained.state_dict().items():
            assert torch.equal(read.state_dict()[name], value.cpu()), name

    def test_a_run_that_stopped_goes_on(self, prepared, tmp_path):
        class Stop(train.TrainerCallback):
            def on_epoch_begin(self, args, state, control, **kwargs):
                if state.epoch == 2:
                    raise KeyboardInterrupt

        whole, expected = train_it(prepared, tmp_path / "whole")
        documents = prepared.documents("train"), prepared.documents("dev")
        with pytest.raises(KeyboardInterrupt):
            train.fine_tune(
                fresh_model(prepared),
                *documents,
                prepared.train_counts,
                tmp_path / "cut",
                config=TrainConfig(epochs=3, batch_size=8, lr_queries=0.05),
                progress=False,
                callbacks=[Stop()],
            )
        resumed, history = train_it(prepared, tmp_path / "cut")
        assert [row["epoch"] for row in without_times(history)] == [1, 2, 3]
        assert history[-1]["train_loss"] == pytest.approx(expected[-1]["train_loss"], rel=1e-2)
        assert set(weights(resumed)) == set(weights(whole))

    @pytest.mark.parametrize("trainer", ["approx_ndcg", "lambdarank", "listnet"])
    def test_queries_are_pretrained_there(self, prepared, trainer):
        queries = [
            pretrained(prepared, trainer, device).label_queries for device in ("cuda", "cpu")
        ]
        assert torch.allclose(*queries, atol=0.05 * float(queries[1].abs().max()))

    def test_twins_of_the_viewer_begin_as_on_a_cpu(self, trained):
        there = viewer.untrained(trained, "random", seed=1)
        here = viewer.untrained(trained.cpu(), "random", seed=1)
        trained.cuda()
        assert there.device.type == "cuda"
        assert torch.equal(there.decoder.label_queries.cpu(), here.decoder.label_queries)


def pretrained(prepared, trainer: str, device: str) -> l2r.Planted:
    """Queries of the tiny corpus, pretrained on a device for one epoch."""
    return l2r.pretrain(
        trainer,
        prepared.features,
        prepared.rows["train"],
        ingredients.teacher_of(prepared),
        label_names=prepared.corpus.label_names,
        tokens=prepared.vocabulary,
        labels=prepared.corpus.labels,
        config=l2r.L2RConfig(epochs=1),
        device=device,
        progress=False,
    )


def test_the_teacher_is_counted_where_the_machine_says(prepared, monkeypatch):
    asked = []
    counted = mig._implementation

    def implementation(impl, device, *sizes):
        asked.append(device)
        return counted(impl, None, *sizes)

    expected = ingredients.teacher_of(prepared, TeacherConfig())
    monkeypatch.setattr(mig, "_implementation", implementation)
    monkeypatch.setattr(machine, "device", lambda: torch.device("cuda"))
    teacher = ingredients.teacher_of(prepared, TeacherConfig())
    assert asked == [torch.device("cuda")]
    assert (teacher.scores != expected.scores).nnz == 0


def test_queries_are_pretrained_where_the_machine_says(prepared, monkeypatch):
    class Seen(Exception):
        pass

    def seen(*_, device, **__):
        raise Seen(device)

    monkeypatch.setattr(machine, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(l2r, "pretrain", seen)
    teacher = mig.teach(prepared.train_tokens, prepared.train_labels)
    config = RunConfig()
    with pytest.raises(Seen, match="cuda"):
        artefacts.label_queries(
            prepared,
            "listnet",
            teacher,
            withheld=None,
            teacher_config=config.teacher,
            config=config.l2r,
            seed=9,
            progress=False,
        )


def test_lists_and_states_follow_the_queries(prepared):
    """On the meta device there are shapes alone, and tensors of two devices cannot meet."""
    teacher = ingredients.teacher_of(prepared)
    queries = torch.zeros(teacher.num_labels, prepared.hidden_size, device="meta")
    by_token = teacher.relevance.T.tocsr()
    labels = prepared.corpus.labels
    drawn = []
    for i in prepared.rows["train"][:4]:
        lists = l2r._lists(
            int(i),
            prepared.features,
            teacher.relevance,
            by_token,
            labels[int(i)].indices,
            l2r.np.random.default_rng(0),
        )
        drawn.append((int(i), lists))
    loss = l2r._batch_loss("listnet", queries, prepared.features, drawn)
    assert loss.device.type == "meta" and loss.shape == ()


def test_windows_are_laid_out_on_the_cpu_and_moved_once(backbone, monkeypatch):
    ids = torch.arange(5, 25)
    cut = [part for document in windows.spans(torch.tensor([0, 6, 20]), 14) for part in document]
    places = []
    monkeypatch.setattr(
        torch.Tensor,
        "new_tensor",
        lambda self, x: places.append(self.device.type) or torch.tensor(x),
    )
    tensors = windows.padded(ids, cut, backbone.tokenizer)
    assert set(places) == {"cpu"} and [t.shape for t in tensors] == [(2, 16)] * 3


def test_values_of_twins_are_drawn_before_they_move(trained, monkeypatch):
    expected = viewer.untrained(trained, "random", seed=1).decoder.label_queries
    moved = []
    to = PlantModel.to

    def recording(self, *where):
        moved.append(self.decoder.label_queries.detach().cpu().clone())
        return to(self, *where)

    monkeypatch.setattr(PlantModel, "to", recording)
    viewer.untrained(trained, "random", seed=1)
    assert torch.equal(moved[0], expected.cpu())


@pytest.mark.parametrize(("on_gpu", "workers"), [(True, 1), (False, 0)])
def test_batches_are_read_ahead_where_a_gpu_trains(on_gpu, workers, tmp_path, monkeypatch):
    options = {}
    monkeypatch.setattr(train, "TrainingArguments", lambda **given: options.update(given))
    monkeypatch.setattr(train, "one_device", lambda arguments: arguments)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    train._arguments(tmp_path, TrainConfig())
    assert options["dataloader_num_workers"] == workers
    assert options["dataloader_pin_memory"] is options["accelerator_config"]["non_blocking"]
    assert options["dataloader_pin_memory"] is on_gpu


def test_batches_that_are_read_ahead_are_the_same(prepared, tmp_path, monkeypatch):
    models = []
    made = train.TrainingArguments
    for workers in (0, 1):
        monkeypatch.setattr(
            train,
            "TrainingArguments",
            lambda workers=workers, **given: made(**given | {"dataloader_num_workers": workers}),
        )
        models.append(train_it(prepared, tmp_path / str(workers), epochs=1)[0])
    for name, value in weights(models[0]).items():
        assert torch.equal(value, weights(models[1])[name]), name


@pytest.mark.skipif(not machine.has_triton(), reason="triton is not installed")
def test_fit_trains_through_the_fused_kernel(prepared, tmp_path, monkeypatch):
    """What `auto` takes on a GPU, here in Triton's interpreter."""
    if not machine.interpreted():
        pytest.skip("needs TRITON_INTERPRET=1")
    chosen = []

    def implementation(impl, tensor):
        chosen.append(impl)
        return "triton"

    plain, expected = train_it(prepared, tmp_path / "torch", epochs=1, batch_size=30)
    monkeypatch.setattr(machine, "implementation", implementation)
    fused, history = train_it(prepared, tmp_path / "triton", epochs=1, batch_size=30)
    assert set(chosen) == {"auto"}
    assert history[0]["train_loss"] == pytest.approx(expected[0]["train_loss"], abs=1e-4)
    for name, value in weights(plain).items():
        assert torch.allclose(value, weights(fused)[name], atol=1e-3), name
