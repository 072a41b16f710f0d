"""Pretraining of an encoder: tokens of plain text are hidden, and it learns to fill them in, as BERT does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from shared.errors import Refused
from shared.learning import masking, stream
from shared.presets import ARCHITECTURES
from shared.recipe import (
    Batch,
    Column,
    Finding,
    Item,
    Judged,
    Learner,
    Loss,
    Metric,
    Recipe,
    Sampling,
    Scores,
)
from shared.spec import PretrainSpec, knob

CHARACTERS_A_TOKEN = 3.5  # about, for the estimate of steps
LONGEST_SAMPLE = 300  # characters
SPELLINGS = ("[MASK]", "<mask>")  # of a hidden word, whatever the tokenizer calls it
SAYINGS = (
    "A bird in the hand is worth two in the bush.",
    "A stitch in time saves nine.",
    "All that glitters is not gold.",
    "Birds of a feather flock together.",
    "Every cloud has a silver lining.",
    "Good things come to those who wait.",
    "Look before you leap, for he who hesitates is lost.",
    "Many hands make light work, and too many cooks spoil the broth.",
    "Still waters run deep.",
    "The early bird catches the worm, but the second mouse gets the cheese.",
    "When the cat is away the mice will play.",
    "You cannot have your cake and eat it.",
)


class MaskedLMSpec(PretrainSpec):
    """Knobs of masked language modelling."""

    epochs: float = knob(8, gt=0, le=1000, title="Epochs", help="Times that the text is read.")
    batch_size: int = knob(8, ge=1, le=1024, title="Batch size", help="Blocks in one optimizer step.")
    max_length: int = knob(
        128, ge=16, le=131_072, title="Block length", help="Tokens that the model sees at once in training."
    )
    learning_rate: float | None = knob(
        None,
        gt=0,
        le=1,
        title="Learning rate",
        help="Peak of the learning-rate schedule. Empty: 0.001 from scratch, 0.0001 from learned weights.",
    )
    mask_fraction: float = knob(
        0.15,
        gt=0,
        le=0.9,
        title="Hidden tokens",
        help="Share of the tokens that are to be filled in; drawn anew at every step.",
        advanced=True,
    )
    next_sentence: bool = knob(
        False,
        title="Next-sentence prediction",
        help="Also learn whether the second half of a block follows the first, or is from elsewhere. Only for BERT.",
        advanced=True,
    )

    @classmethod
    def usual_rate(cls, *, scratch: bool) -> float:
        """An encoder from scratch bears less than a decoder: at 0.003 it only learns how frequent tokens are."""
        return 1e-3 if scratch else 1e-4


class MaskedLM(Recipe):
    """BERT from scratch, or an encoder that reads on."""

    name = "masked_lm"
    title = "Encoder pretraining"
    summary = "Let an encoder read plain text by filling in hidden words; then fine-tune it to classify or to answer."
    paper = "https://arxiv.org/abs/1810.04805"
    family = "Pretraining"
    spec = MaskedLMSpec
    columns = (Column("text", "what is read: a document a row, or a text file line by line"),)
    example = [{"text": saying} for saying in SAYINGS]
    metrics = (
        Metric("loss", "Loss", "lower"),
        Metric("masked_accuracy", "Hidden tokens right", "higher"),
        Metric("perplexity", "Perplexity", "lower"),
    )
    head = "encoder"
    default_base_model = "scratch/bert-tiny"
    opens_with = "AutoModelForMaskedLM"
    agrees = "{equal} of {count} texts are filled in with the same words, and no probability differs by more than {largest}."
    place = 55

    def recognise(self, columns: Iterable[str]) -> dict[str, str] | None:
        """A text column by its usual names."""
        return stream.recognise(columns)

    def canonical(self, row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
        """{"text": text}. Raises Refused for what is no text."""
        return {"text": stream.text_of(super().canonical(row, columns))}

    def findings(self, rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> Iterator[Finding]:
        """What is no text is fatal; empty rows are left out."""
        return stream.findings(rows, columns)

    def input(self, row: dict[str, Any]) -> dict[str, Any]:
        """The text with its middle word hidden."""
        return {"text": hidden(row["text"])[0]}

    def examples(self, rows: int, characters: int, spec: MaskedLMSpec) -> int:
        """Blocks of that text."""
        return math.ceil(characters / CHARACTERS_A_TOKEN / spec.max_length)

    def split(
        self, rows: Sequence[dict[str, Any]], fraction: float, seed: int
    ) -> tuple[list[int], list[int]]:
        """Documents at random; of a stream the last rows."""
        return stream.split(rows, fraction, seed)

    def train_tokenizer(self, rows: Sequence[dict[str, Any]], spec: MaskedLMSpec) -> Any:
        """Learned from the rows; it frames texts and pairs of them as BERT's does."""
        from shared.learning.tokenizers import frame

        return frame(super().train_tokenizer(rows, spec))

    def load_tokenizer(self, folder: Any, rows: Sequence[dict[str, Any]], spec: MaskedLMSpec) -> Any:
        """The base model's. Raises Refused where it has no mask token."""
        tokenizer = super().load_tokenizer(folder, rows, spec)
        if None in (tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id):
            raise Refused(
                "This base model's tokenizer has no mask token: it is no encoder that fills in words.",
                param="model",
            )
        return tokenizer

    def load_model(self, learner: Learner, folder: Any) -> Any:
        """An encoder with its head for hidden tokens; a fresh one where it has none. Raises Refused."""
        from transformers import AutoConfig, AutoModelForMaskedLM, BertForPreTraining

        if not learner.spec.next_sentence:
            return AutoModelForMaskedLM.from_pretrained(folder, dtype="float32")
        if (kind := AutoConfig.from_pretrained(folder).model_type) != "bert":
            raise Refused(
                f"Next-sentence prediction is BERT's, and this base model is «{kind}». Turn it off.",
                param="next_sentence",
            )
        return BertForPreTraining.from_pretrained(folder, dtype="float32")

    def build_model(self, learner: Learner) -> Any:
        """A BERT of the preset's size, without dropout. Raises Refused for an architecture of another kind."""
        from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

        preset, tokenizer = learner.preset, learner.tokenizer
        if preset["architecture"] != "bert":
            raise Refused(f"«{preset['architecture']}» is no encoder. Choose bert.", param="model")
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=preset["width"],
            intermediate_size=4 * preset["width"],
            num_hidden_layers=preset["layers"],
            num_attention_heads=preset["heads"],
            max_position_embeddings=max(ARCHITECTURES["bert"][2], learner.spec.max_length),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )
        return (BertForPreTraining if learner.spec.next_sentence else BertForMaskedLM)(config)

    def encode_all(self, rows: Sequence[dict[str, Any]], learner: Learner) -> Iterator[tuple[int, Item]]:
        """Blocks of `max_length` tokens, [CLS] and [SEP] included: `input_ids`; with next-sentence prediction
        two halves, which `token_type_ids` tell apart, and `apart`, 0 or 1.
        """
        from shared.learning.language_model import room

        length, tokenizer = room(learner, learner.spec.max_length), learner.tokenizer
        tokens = stream.tokens(rows, tokenizer, tokenizer.sep_token_id)
        if learner.spec.next_sentence:
            return masking.pairs(stream.parts(tokens, length - 3), tokenizer)
        return masking.framed(stream.parts(tokens, length - 2), tokenizer)

    def collate(self, items: list[Item], learner: Learner) -> Batch:
        """The blocks padded, with tokens hidden at random; see `masking.hide`."""
        from shared.learning.batch import pad

        batch = pad(items, learner.tokenizer)
        ids = batch["input_ids"]
        draws = masking.drawn(items, ids.shape[1])
        return batch | masking.hide(ids, learner.tokenizer, learner.spec.mask_fraction, draws)

    def loss(self, learner: Learner, batch: Batch) -> Loss:
        """Cross-entropy of the hidden tokens; beside it, where asked for, of «apart or not», which weighs as
        much as the hidden tokens that a block has on average.
        """
        from torch.nn.functional import cross_entropy

        logits, follows = masking.logits(learner.model, batch)
        total = cross_entropy(logits, batch["targets"], reduction="sum")
        if follows is not None:
            weight = learner.spec.mask_fraction * learner.spec.max_length
            total = total + weight * cross_entropy(follows, batch["apart"], reduction="sum")
        return Loss(total, len(batch["targets"]))

    def judged(self, learner: Learner, batch: Batch) -> list[Judged]:
        """Of each block: summed loss, hidden tokens, how many were found; whether «apart» was."""
        from torch.nn.functional import cross_entropy

        from shared.learning.language_model import sums_by_owner

        logits, follows = masking.logits(learner.model, batch)
        sums = sums_by_owner(
            batch["owners"],
            loss=cross_entropy(logits, batch["targets"], reduction="none"),
            right=(logits.argmax(-1) == batch["targets"]).float(),
        )
        if follows is None:
            return sums
        told = (follows.argmax(-1) == batch["apart"]).float().tolist()
        return [one | {"told": right, "blocks": 1.0} for one, right in zip(sums, told, strict=True)]

    def measure(self, found: list[Judged], facts: dict[str, Any]) -> Scores:
        """The metrics; next-sentence accuracy in detail, where that was learned."""
        scores = super().measure(found, facts)
        if blocks := sum(one.get("blocks", 0) for one in found):
            accuracy = sum(one["told"] for one in found) / blocks
            return Scores(scores.metrics, {"next_sentence_accuracy": accuracy})
        return scores

    def scored(self, sums: dict[str, float]) -> dict[str, float]:
        """Means over hidden tokens."""
        hidden_tokens = max(sums["weight"], 1)
        loss = sums["loss"] / hidden_tokens
        return {
            "loss": loss,
            "masked_accuracy": sums["right"] / hidden_tokens,
            "perplexity": math.exp(min(loss, 50)),
        }

    def sample(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """A word of each row hidden, and what is filled in."""
        asked = [hidden(row["text"][:LONGEST_SAMPLE]) for row in rows]
        items = [self.encode_input({"text": text}, learner) for text, _ in asked]
        answers = self.predict(learner, items, [])
        return [
            {"prompt": text, "expected": word, "answer": " ".join(answer["tokens"]).strip()}
            for (text, word), answer in zip(asked, answers, strict=True)
        ]

    def encode_input(self, given: dict[str, Any], learner: Learner) -> Item:
        """The text's tokens between [CLS] and [SEP]. Raises Refused where no word is hidden, or it is too long."""
        text, tokenizer = given.get("text"), learner.tokenizer
        if not isinstance(text, str) or not text.strip():
            raise Refused("The input needs a «text» with a [MASK] in it.", param="text")
        for spelling in SPELLINGS:
            text = text.replace(spelling, tokenizer.mask_token)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if tokenizer.mask_token_id not in ids:
            raise Refused("The text has no [MASK]: write it where a word is to be filled in.", param="text")
        longest = (
            getattr(learner.model.config, "max_position_embeddings", math.inf) if learner.model else math.inf
        )
        if len(ids) + 2 > longest:
            raise Refused(
                f"The text has {len(ids)} tokens; this model reads at most {longest - 2}. Shorten it.",
                param="text",
                code="context_length_exceeded",
            )
        return {"input_ids": [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]}

    def predict(self, learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
        """[{tokens, scores}]: the likeliest token of each hidden place, in order, and its probability."""
        import torch

        from shared.learning.batch import pad

        tokenizer = learner.tokenizer
        batch = {name: value.to(learner.device) for name, value in pad(items, tokenizer).items()}
        places = (batch["input_ids"].flatten() == tokenizer.mask_token_id).nonzero().flatten()
        with torch.no_grad():
            logits, _ = masking.logits(learner.model, batch | {"places": places})
        shares, best = torch.softmax(logits, -1).max(-1)
        rows = (places // batch["input_ids"].shape[1]).tolist()
        outputs: list[dict[str, list]] = [{"tokens": [], "scores": []} for _ in items]
        for row, token, share in zip(rows, best.tolist(), shares.tolist(), strict=True):
            outputs[row]["tokens"].append(tokenizer.decode([token]).strip())
            outputs[row]["scores"].append(round(share, 6))
        return outputs

    def usage(self, learner: Learner) -> str:
        """Fill in words by transformers alone."""
        return (
            "from transformers import pipeline\n\n"
            'fill = pipeline("fill-mask", "path/to/this/folder")\n'
            'print(fill(f"The cat sat on the {fill.tokenizer.mask_token}."))\n'
        )


def hidden(text: str) -> tuple[str, str]:
    """(the text with its middle word as [MASK], that word)."""
    words = text.split(" ")
    places = [place for place, word in enumerate(words) if word.strip()]
    if not places:
        return "[MASK]", ""
    middle = places[len(places) // 2]
    word = words[middle].strip()
    words[middle] = words[middle].replace(word, "[MASK]")
    return " ".join(words), word


recipe = MaskedLM()
