"""Models that go to a hub and come back, for several starts and backbones, against a hub of this
machine that speaks as much of the protocol as an upload and a download need.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import urlsplit

import huggingface_hub.constants
import pytest

from plantlib import PlantModel, fit
from plantlib.backbones import adapters, loading
from plantlib.data import kept
from plantlib.data.credentials import PrivacyError
from plantlib.model.card import write_card
from plantlib.planting import starts
from plantlib.training.ingredients import build_model, ingredients, use_score
from plantlib.training.options import RunConfig
from tests.model.test_model import TEXTS

pytestmark = pytest.mark.filterwarnings("ignore:dev has .* right labels")
OPTIONS = {"max_tokens": None, "progress": False}


class Hub(BaseHTTPRequestHandler):
    """Repositories as {id: {path: bytes}}; one branch, and files in the commit itself."""

    def log_message(self, *_) -> None:
        pass

    def answer(self, value, headers=(), status: int = 200, body: bool = True) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, content in (*headers, ("Content-Length", str(len(data)))):
            self.send_header(name, content)
        self.end_headers()
        if body:
            self.wfile.write(data)

    @property
    def repositories(self) -> dict:
        return self.server.repositories

    def sha(self, name: str) -> str:
        return hashlib.sha1(repr(sorted(self.repositories[name].items())).encode()).hexdigest()

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        host = f"http://{self.headers['Host']}"
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            about = json.loads(data)
            name = f"{about['organization']}/{about['name']}"
            self.repositories.setdefault(name, {})
            return self.answer({"url": f"{host}/{name}", "id": name, "name": name})
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [f["path"] for f in json.loads(data)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return self.answer({"files": [{"path": file, "oid": None} | modes for file in files]})
        for line in map(json.loads, data.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.repositories[name][line["value"]["path"]] = content
        oid = self.sha(name)
        return self.answer({"commitUrl": f"{host}/{name}/commit/{oid}", "commitOid": oid})

    def do_GET(self, body: bool = True) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        files = self.repositories.get(name)
        if files is None:
            return self.answer({}, [("X-Error-Code", "RepoNotFound")], 404, body)
        if api and "tree" in parts:
            rows = [{"type": "file", "path": p, "size": len(c)} for p, c in files.items()]
            return self.answer([row | {"oid": self.etag(files[row["path"]])} for row in rows])
        if api:
            siblings = [{"rfilename": path} for path in files]
            return self.answer({"id": name, "sha": self.sha(name), "siblings": siblings})
        path = "/".join(parts[4:])
        if path not in files:
            return self.answer({}, [("X-Error-Code", "EntryNotFound")], 404, body)
        content = files[path]
        marks = [("ETag", f'"{self.etag(content)}"'), ("X-Repo-Commit", self.sha(name))]
        return self.answer(content, marks, 200, body)

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    @staticmethod
    def etag(content: bytes) -> str:
        return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(monkeypatch):
    """The repositories of a running hub, which huggingface_hub takes for the real one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server.repositories
    server.shutdown()
    server.server_close()


def planted(prepared, backbone_folder, start: str) -> PlantModel:
    """A model of a start as it begins, with its backbone."""
    config = RunConfig()
    made = ingredients(prepared, start, config, progress=False)
    model = build_model(prepared, made, config)
    starts.plant(
        model.decoder,
        start,
        made.teacher,
        prepared.train_labels,
        planted=made.queries,
        l2r_table=made.l2r_table,
    )
    use_score(model, starts.parts_of(start), made.teacher, prepared)
    return model.attach_backbone(loading.load(backbone_folder)).eval()


@pytest.mark.parametrize(
    "start", ("random", "closed_form", "lookup", "shuffled", "lookup+score", "lookup+linear", "v1")
)
def test_a_model_of_every_start_goes_to_a_hub_and_comes_back(
    start, hub, prepared, backbone_folder, tmp_path
):
    model = planted(prepared, backbone_folder, start)
    address = model.push_to_hub("owner/name", token="hf_none")
    assert "/owner/name/commit/" in address
    back = PlantModel.from_pretrained("owner/name", cache_dir=tmp_path)
    assert back.predict(TEXTS, k=3) == model.predict(TEXTS, k=3)


def test_adapters_come_back_on_their_backbone(hub, prepared, backbone_folder, tmp_path):
    model = planted(prepared, backbone_folder, "lookup")
    options = adapters.LoraOptions(), adapters.BackboneOptions()
    adapters.open_backbone(model, lambda **_: loading.load(backbone_folder), "lora", *options)
    model.push_to_hub("owner/adapted", token="hf_none")
    assert "adapter/adapter_model.safetensors" in hub["owner/adapted"]
    back = PlantModel.from_pretrained("owner/adapted", backbone=backbone_folder, cache_dir=tmp_path)
    assert back.predict(TEXTS, k=3) == model.eval().predict(TEXTS, k=3)


def test_the_quick_tier_goes_without_its_documents_and_with_its_card(hub, corpus, tmp_path):
    corpus.manifest["licence"] = "CC BY 4.0"
    try:
        model = fit(corpus, backbone="words", root=tmp_path / "work", **OPTIONS)
    finally:
        del corpus.manifest["licence"]
    model.push_to_hub("owner/words", token="hf_none")
    assert kept.FILE not in hub["owner/words"] and model.kept is not None
    back = PlantModel.from_pretrained("owner/words", cache_dir=tmp_path / "hub")
    assert back.predict(TEXTS, k=3) == model.predict(TEXTS, k=3)
    card = hub["owner/words"]["README.md"].decode()
    for words in ("60 training", "CC BY 4.0", "## Intended use", "## Limits", "| ndcg@5 |"):
        assert words in card


def test_a_credentialed_model_goes_to_no_hub(hub, prepared, backbone_folder):
    model = planted(prepared, backbone_folder, "random")
    model.config.credentialed = True
    with pytest.raises(PrivacyError, match="goes to no hub"):
        model.push_to_hub("owner/name")
    with pytest.raises(PrivacyError, match="goes to no hub"):
        model.save_pretrained("anywhere", push_to_hub=True)
    model.config.credentialed = False
    with pytest.raises(ValueError, match="model.push_to_hub"):
        model.save_pretrained("anywhere", push_to_hub=True)
    assert not hub


def test_a_hub_that_refuses_is_one_line(hub, prepared, backbone_folder, monkeypatch):
    model = planted(prepared, backbone_folder, "random")
    with pytest.raises(ValueError, match="could not be uploaded as 'a/b/c'"):
        model.push_to_hub("a/b/c", token="hf_none")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE=0") as refused:
        model.push_to_hub("owner/name", token="hf_none")
    assert "\n" not in str(refused.value)


def test_the_card_says_why_there_are_no_numbers(tmp_path):
    dataset = {"synthetic": False, "name": "mine", "train": 5, "dev": 2, "test": 0, "labels": 3}
    record = SimpleNamespace(
        id="first",
        system="linear",
        backbone="words",
        seed=0,
        chosen_epoch=1,
        params={"learned": [5, 1]},
        metrics={},
        dataset=dataset | {"label_space": "labels with a training document"},
        history=[],
        times={},
        peak_memory_mb=None,
        model_size=12,
        environment={"cores": 2, "cpu": "a processor"},
        created="2026-11-28",
    )
    assert "learned on from 6 documents" in write_card(record, tmp_path).read_text()
    record.params = {}
    assert "There was no test split" in write_card(record, tmp_path).read_text()
