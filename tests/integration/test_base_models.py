"""Base models: the two of the packages, a team's own, and the names of what was trained on them."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from sqlmodel import Session

from shared import base_models, jobs, presets, queue, storage
from shared.columns import now
from shared.db import transaction
from shared.errors import Refused
from shared.tables import BaseModel, Job, Ready, Slot, State, Team
from tests.factories import a_base_model, a_checkpoint, a_job, a_team, tiny_causal_lm, tiny_encoder
from tests.services import Live, until


def zipped(folder: Path, **changed: bytes) -> io.BytesIO:
    """The folder as people pack it, with files changed or added."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        for name, data in (files | {name.replace("__", "."): data for name, data in changed.items()}).items():
            archive.writestr(f"my model/{name}", data)
    return buffer


def upload(team: Team, stream: io.BytesIO) -> BaseModel:
    return base_models.upload(team_id=team.id, stream=stream, filename="tiny.zip", created_by=None)


def imported(base: BaseModel, seconds: float = 240) -> BaseModel:
    """The row once its import has ended."""

    def ended() -> BaseModel | None:
        with transaction() as db:
            row = db.get_one(BaseModel, base.id)
        return row if row.state in (Ready.READY, Ready.FAILED) else None

    return cast(BaseModel, until(ended, seconds, f"the import of {base.id}"))


def fetched(base: BaseModel, folder: Path) -> Path:
    assert base.state == Ready.READY, base.error
    storage.get_folder(base.prefix or "", base.manifest, folder)
    return folder


def of_package(name: str, team: Team) -> BaseModel:
    """The packaged base model, imported by the worker where no test has done it before."""
    with transaction() as db:
        base = db.get_one(BaseModel, name)
        if base.state == Ready.WAITING:
            jobs.submit_import(db, team_id=team.id, base_model_id=base.id)
    queue.wake(Slot.LIGHT)
    return imported(base)


@pytest.fixture
def crew(live: Live) -> Team:
    with transaction() as db:
        return a_team(db)


@pytest.mark.slow
def test_smollm2_answers_sensibly_after_its_import(crew: Team, tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = of_package("smollm2-135m-instruct", crew)
    folder = fetched(base, tmp_path / "model")
    before = next(known for known in base_models.packaged() if known.id == base.id)
    assert base.facts == before.facts
    assert base.prefix == f"base/{base.content_hash}/"
    assert {path.name for path in folder.iterdir()} >= {
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
    }
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    given = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**given, max_new_tokens=12, do_sample=False)[0, given["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."


def test_minilm_puts_like_sentences_together_after_its_import(crew: Team, tmp_path: Path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    base = of_package("minilm-l6-v2", crew)
    folder = fetched(base, tmp_path / "model")
    before = next(known for known in base_models.packaged() if known.id == base.id)
    assert base.facts == before.facts
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    texts = [
        "A man plays the guitar.",
        "Someone makes music on an instrument.",
        "The stock market fell today.",
    ]
    given = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**given).last_hidden_state
    mask = given["attention_mask"].unsqueeze(-1)
    means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    likeness = means @ means.T
    assert likeness[0, 1] > 0.4 > likeness[0, 2] + 0.2


@pytest.mark.parametrize(("make", "head"), [(tiny_causal_lm, "causal_lm"), (tiny_encoder, "encoder")])
def test_a_zip_becomes_a_base_model(crew: Team, tmp_path: Path, make: Callable[[Path], Path], head: str):
    base = imported(upload(crew, zipped(make(tmp_path / "tiny"))))
    assert base.state == Ready.READY, base.error
    assert base.facts["heads"] == [head]
    assert base.facts["chat"] == (head == "causal_lm")
    assert base.facts["parameters"] > 10_000
    assert {entry["name"] for entry in base.manifest} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_a_zip_whose_weights_do_not_fit_its_config_says_so(crew: Team, tmp_path: Path):
    folder = tiny_causal_lm(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    base = imported(upload(crew, zipped(folder, config__json=json.dumps(config).encode())))
    assert base.state == Ready.FAILED
    assert "layers.2" in (base.error or "")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"modeling_evil__py": b"import os"}, "«modeling_evil.py» is code"),
        ({"model__safetensors": pickle.dumps({"a": 1})}, "«model.safetensors» is a Python pickle"),
        ({"config__json": b'{"model_type": "llama", "auto_map": {"AutoModel": "x.Y"}}'}, "key «auto_map»"),
        ({"config__json": b'{"model_type": "evil"}'}, "model_type «evil»"),
    ],
)
def test_a_hostile_zip_is_refused_and_leaves_nothing(
    clean: None, tmp_path: Path, changed: dict[str, bytes], said: str
):
    with transaction() as db:
        team = a_team(db)
    with pytest.raises(Refused, match=said):
        upload(team, zipped(tiny_encoder(tmp_path / "tiny"), **changed))
    assert not list(storage.listed(f"teams/{team.id}/"))
    with transaction() as db:
        assert {base.team_id for base in base_models.all_for(db, team.id)} == {None}


def test_the_packaged_models_are_known_once(db: Session):
    team = a_team(db)
    base_models.ensure_known(db)
    base_models.ensure_known(db)
    known = [base.id for base in base_models.all_for(db, team.id)]
    assert known[:2] == ["smollm2-135m-instruct", "minilm-l6-v2"]
    assert set(known[2:]) == {one["id"] for one in presets.every()}
    assert base_models.find(db, team.id, "minilm-l6-v2").base_model.state == Ready.WAITING


def test_a_teams_own_model_is_nobody_elses(db: Session):
    team, other = a_team(db), a_team(db)
    base = a_base_model(db, team=team)
    assert base_models.find(db, team.id, base.id).base_model == base
    assert base_models.all_for(db, team.id)[0] == base
    assert base not in base_models.all_for(db, other.id)
    with pytest.raises(Refused) as refusal:
        base_models.find(db, other.id, base.id)
    assert (refusal.value.code, refusal.value.status) == ("model_not_found", 404)


def test_a_checkpoint_is_found_by_its_id_and_its_names(db: Session):
    team, other = a_team(db, "The Lab & Co."), a_team(db)
    job = a_job(db, team, asked={"suffix": "My Bot!"})
    early, best = a_checkpoint(db, job, 10), a_checkpoint(db, job, 20)
    job.best_checkpoint_id = best.id
    db.flush()
    name, early_name = base_models.name_of(best, job, team), base_models.name_of(early, job, team)
    assert name == f"ft:{job.base_model_id}:the-lab-co:my-bot:{best.id[-8:]}"
    assert early_name == f"ft:{job.base_model_id}:the-lab-co:my-bot:{early.id[-8:]}:ckpt-step-10"
    for asked, checkpoint in (
        (name, best),
        (f"{name}:ckpt-step-20", best),
        (early_name, early),
        (early.id, early),
    ):
        found = base_models.find(db, team.id, asked)
        assert (found.base_model.id, found.checkpoint) == (job.base_model_id, checkpoint)
        with pytest.raises(Refused, match="does not exist"):
            base_models.find(db, other.id, asked)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ft:",
        "ft:x:y:z:%",
        "ft:smollm2-135m-instruct:t::________",
        "ftckpt_%",
        "ft:a:b:c:12345678:ckpt-step-x",
    ],
)
def test_a_name_that_stands_for_nothing_is_a_404(db: Session, name: str):
    with pytest.raises(Refused, match="does not exist") as refusal:
        base_models.find(db, a_team(db).id, name)
    assert refusal.value.status == 404


def test_a_hub_is_asked_only_where_the_operator_allows_it(clean: None):
    with transaction() as db:
        team = a_team(db)
    with pytest.raises(Refused, match="ALLOW_HUB") as refusal:
        base_models.from_hub(team_id=team.id, hub_id="owner/name", revision="", created_by=None)
    assert refusal.value.code == "hub_not_allowed"


def test_a_base_model_in_use_stays(db: Session):
    team = a_team(db)
    base = a_base_model(db, team=team)
    job = a_job(db, team, base_model_id=base.id)
    with pytest.raises(Refused, match=job.id):
        base_models.delete(db, base)
    job.state, job.finished_at = State.SUCCEEDED, now()
    checkpoint = a_checkpoint(db, job, adapter=True)
    with pytest.raises(Refused, match=checkpoint.id):
        base_models.delete(db, base)
    with pytest.raises(Refused, match="everybody"):
        base_models.delete(db, db.get_one(BaseModel, "minilm-l6-v2"))


def test_a_base_model_goes_with_its_bytes_unless_another_has_the_same(clean: None, tmp_path: Path):
    with transaction() as db:
        team = a_team(db)
        first = a_base_model(db, tiny_encoder(tmp_path / "tiny"), team=team)
        second = a_base_model(db, team=team)
        second.prefix = first.prefix
    for base, left in ((first, True), (second, False)):
        with transaction() as db:
            base_models.delete(db, db.get_one(BaseModel, base.id))
        assert bool(list(storage.listed(first.prefix or ""))) is left


def test_an_import_job_knows_its_uploaded_file(clean: None, tmp_path: Path):
    with transaction() as db:
        team = a_team(db)
    base = upload(team, zipped(tiny_encoder(tmp_path / "tiny")))
    with transaction() as db:
        job = db.get_one(Job, db.get_one(BaseModel, base.id).import_job_id)
    assert (job.base_model_id, base.source) == (base.id, f"file:{job.file_id}")
    assert (base.title, base.state) == ("tiny", Ready.BUILDING)
