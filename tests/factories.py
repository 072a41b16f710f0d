"""Rows and tiny base models for tests. Each makes what it needs and takes the rest as keywords."""

import hashlib
import io
import itertools
import json
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from sqlmodel import Session

from shared import passwords, recipe, storage, teams
from shared.columns import now
from shared.ids import new_id
from shared.tables import (
    FINAL,
    Artifact,
    Attempt,
    BaseModel,
    Checkpoint,
    Dataset,
    DatasetVersion,
    File,
    Job,
    Kind,
    Membership,
    Ready,
    Role,
    Slot,
    State,
    Team,
    User,
    Worker,
)

T = TypeVar("T")
PASSWORD = "a long walk by the sea"
CHAT = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n} and one?"},
            {"role": "assistant", "content": f"{n + 1}."},
        ]
    }
    for n in range(12)
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PREFIXES = {
    Kind.TRAIN: "ftjob-",
    Kind.INFER: "batch_",
    Kind.EXPORT: "export-",
    Kind.IMPORT: "import-",
    Kind.EVALUATE: "evaluate-",
}
_numbers = itertools.count(1)


def stored(db: Session, row: T) -> T:
    """The row, written in the session's transaction."""
    db.add(row)
    db.flush()
    return row


def a_team(db: Session, name: str | None = None) -> Team:
    """A team with a name of its own."""
    return stored(db, Team(name=name or f"Team {next(_numbers)}"))


def a_user(db: Session, team: Team, role: Role | str = Role.MEMBER, email: str | None = None) -> User:
    """A person of that team whose password is `PASSWORD`."""
    email = email or f"person{next(_numbers)}@example.com"
    user = stored(db, User(email=email, password_hash=passwords.hashed(PASSWORD)))
    stored(db, Membership(team_id=team.id, user_id=user.id, role=Role(role)))
    return user


def a_token(db: Session, team: Team, role: Role | str = Role.OWNER, name: str = "tests") -> str:
    """The secret of a new API token of that team."""
    return teams.create_token(db, team, name, role)[1]


def a_file(
    db: Session, team: Team, data: bytes = b"{}\n", filename: str = "rows.jsonl", purpose: str = "fine-tune"
) -> File:
    """Stored bytes with their row."""
    file = File(id=new_id("file-"), team_id=team.id, purpose=purpose, filename=filename, bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(), key="", status="processed")  # fmt: skip
    file.key = f"teams/{team.id}/files/{file.id}"
    storage.put_bytes(file.key, data)
    return stored(db, file)


def a_dataset(
    db: Session, team: Team, rows: list[dict] | None = None, name: str | None = None
) -> DatasetVersion:
    """The first version of a new dataset with these rows (chat rows where none are given), imported."""
    rows = CHAT if rows is None else rows
    name = name or f"dataset-{next(_numbers)}"
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = a_file(db, team, lines, f"{name}.jsonl")
    dataset = stored(db, Dataset(team_id=team.id, name=name))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    parquet = buffer.getvalue()
    version = DatasetVersion(id=new_id("dsv-"), team_id=team.id, dataset_id=dataset.id, number=1, file_id=file.id,
                             state=Ready.READY, rows=len(rows), bytes=len(parquet), report=a_report(rows),
                             content_hash=hashlib.sha256(parquet).hexdigest())  # fmt: skip
    version.key = f"teams/{team.id}/datasets/{version.id}.parquet"
    storage.put_bytes(version.key, parquet)
    return stored(db, version)


def a_report(rows: list[dict]) -> dict[str, Any]:
    """What the importer would say of good rows."""
    names = list(rows[0]) if rows else []
    fits = {r.name: found for r in recipe.recipes().values() if (found := r.recognise(names))}
    clean: dict[str, Any] = {"findings": [], "fatal": 0, "skipped": 0}
    columns = [{"name": n, "type": type(rows[0][n]).__name__, "filled": len(rows)} for n in names]
    return {
        "format": "jsonl",
        "columns": columns,
        "preview": rows[:50],
        "findings": [],
        "fits": {name: {"columns": found, **clean} for name, found in fits.items()},
    }


def a_base_model(
    db: Session, folder: Path | None = None, *, head: str = "causal_lm", team: Team | None = None
) -> BaseModel:
    """A base model that is ready; with a folder its files are in the store."""
    number = next(_numbers)
    prefix = f"base/test{number}/"
    manifest = storage.put_folder(prefix, folder) if folder else []
    facts = {"architecture": "Test", "heads": [head], "parameters": 50_000, "max_length": 256, "vocab_size": 300,
             "chat": head == "causal_lm"}  # fmt: skip
    return stored(db, BaseModel(id=f"test-model-{number}", team_id=team.id if team else None, title="A tiny model",
                                source="package:test", state=Ready.READY, content_hash=f"test{number}",
                                prefix=prefix, manifest=manifest, facts=facts))  # fmt: skip


def a_job(db: Session, team: Team, kind: Kind = Kind.TRAIN, **fields: Any) -> Job:
    """A queued job; a training job gets a dataset and a base model where none are named, a running one the name of
    an attempt.
    """
    if kind is Kind.TRAIN:
        if "dataset_version_id" not in fields:
            fields["dataset_version_id"] = a_dataset(db, team).id
        if "base_model_id" not in fields:
            fields["base_model_id"] = a_base_model(db).id
        fields.setdefault("recipe", "sft")
        fields.setdefault("columns", {"messages": "messages"})
    if fields.get("state") in FINAL:
        fields.setdefault("finished_at", now())
    if fields.get("state") == State.RUNNING:
        fields = {"attempt_id": new_id("attempt-"), "attempts": 1} | fields
    slot = Slot.COMPUTE if kind in (Kind.TRAIN, Kind.INFER, Kind.EVALUATE) else Slot.LIGHT
    row: dict[str, Any] = {
        "id": new_id(PREFIXES[kind]),
        "team_id": team.id,
        "kind": kind,
        "slot": slot,
    } | fields
    return stored(db, Job(**row))


def a_worker(db: Session, **fields: Any) -> Worker:
    """A worker that offers slots of each class to spare."""
    row: dict[str, Any] = {
        "host": "test",
        "pid": next(_numbers),
        "version": "0",
        "slots": {"compute": 100, "light": 1000},
    } | fields
    return stored(db, Worker(**row))


def an_attempt(db: Session, job: Job, worker: Worker | None = None, **fields: Any) -> Attempt:
    """A try at the job. The job's own columns stay as they are."""
    worker = worker or a_worker(db)
    row: dict[str, Any] = {"job_id": job.id, "team_id": job.team_id, "number": next(_numbers), "worker_id": worker.id,
           "slots": [0], "lease_id": new_id("lease-")} | fields  # fmt: skip
    return stored(db, Attempt(**row))


def a_checkpoint(
    db: Session, job: Job, step: int = 10, folder: Path | None = None, **fields: Any
) -> Checkpoint:
    """A stored checkpoint of the job; `folder` holds servable/ and state/."""
    attempt = an_attempt(db, job)
    prefix = f"teams/{job.team_id}/jobs/{job.id}/{attempt.number}-{attempt.lease_id[:8]}/step-{step:06d}/"
    manifest = storage.put_folder(prefix, folder) if folder else []
    row: dict[str, Any] = {"team_id": job.team_id, "job_id": job.id, "attempt_id": attempt.id, "step": step, "prefix": prefix,
           "manifest": manifest, "bytes": sum(entry["bytes"] for entry in manifest)} | fields  # fmt: skip
    return stored(db, Checkpoint(**row))


def an_evaluation(db: Session, team: Team, lines: list[dict], value: float, **fields: Any) -> Job:
    """A succeeded evaluation of a classifier with these results, every metric at `value`, its files stored."""
    metrics = dict.fromkeys(("f1", "accuracy", "precision", "recall", "loss"), value)
    drawn = {name: [value + n / 10_000 for n in range(-200, 200)] for name in metrics}
    scores = {"tuned": metrics, "intervals": {name: [value - 0.02, value + 0.02] for name in metrics}, "resamples": 400,
              "rows": len(lines), "worst": lines[:1], "best": lines[1:2], "detail": {},
              "left_out": {"count": 1, "rows": [{"row": 9, "reason": "The text is empty."}]}}  # fmt: skip
    given = {"recipe": "classification", "state": State.SUCCEEDED, "scores": scores} | fields
    job = a_job(db, team, Kind.EVALUATE, **given)
    report = json.dumps({"resampled": drawn, "rows_digest": "d"})
    for form, text in (("report", report), ("results", "".join(json.dumps(line) + "\n" for line in lines))):
        file = a_file(db, team, text.encode(), f"{form}.json", "evaluation_output")
        stored(db, Artifact(team_id=team.id, job_id=job.id, form=form, state=Ready.READY, file_id=file.id))
    return job


# --- tiny base models -------------------------------------------------------------------------


def tiny_causal_lm(folder: Path) -> Path:
    """A Llama of about 50,000 random weights with a byte-level tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {word: n for n, word in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    plain = Tokenizer(models.BPE(vocabulary, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>",
        unk_token="<|endoftext|>", model_max_length=256, chat_template=CHATML,
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=40, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_llama(folder: Path) -> Path:
    """The same with a tokenizer that merges a few bytes, as GGUF files need, and norms that are not all alike."""
    import torch
    from transformers import AutoModelForCausalLM

    path = tiny_causal_lm(folder) / "tokenizer.json"
    told = json.loads(path.read_text())
    words = told["model"]["vocab"]
    told["model"]["merges"] = [("h", "e"), ("1", "9"), ("19", "8"), ("198", "4")]
    for pair in told["model"]["merges"]:
        words["".join(pair)] = len(words)
    path.write_text(json.dumps(told))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(words), mean_resizing=False)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(folder)
    return folder


def tiny_encoder(folder: Path) -> Path:
    """A BERT of about 50,000 random weights with a WordPiece tokenizer over characters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [chr(n) for n in range(33, 127) if not chr(n).isupper()]
    vocabulary = {word: n for n, word in enumerate(special + characters + [f"##{c}" for c in characters])}
    plain = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    plain.normalizer = normalizers.BertNormalizer(lowercase=True)
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    plain.decoder = decoders.WordPiece()
    plain.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=128,
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=40, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_seq2seq(folder: Path) -> Path:
    """A T5 of about 50,000 random weights with a tokenizer over bytes that ends every text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    special = ["<pad>", "</s>", "<unk>"]
    vocabulary = {word: n for n, word in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    plain = Tokenizer(models.BPE(vocabulary, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    plain.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=128,
    )  # fmt: skip
    torch.manual_seed(0)
    config: Any = T5Config(
        vocab_size=len(vocabulary), d_model=40, d_kv=10, d_ff=80, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    config.decoder_start_token_id = 0
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_bart(folder: Path) -> Path:
    """The T5's tokenizer before a BART of random weights that reads 40 positions."""
    from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration

    tiny_seq2seq(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=40,
        pad_token_id=0, bos_token_id=2, eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(folder)
    return folder
