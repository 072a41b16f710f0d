"""Code completion: a causal language model learns files of code, and to fill in what stands between two texts."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from shared.errors import Refused
from shared.learning import groups, infilling, lstm, syntax
from shared.learning.cells import text
from shared.learning.usage import opened
from shared.learning.writer import Writer
from shared.recipe import Batch, Column, Finding, Item, Judged, Learner, Loss, Metric, Sampling
from shared.spec import LoraSpec, PretrainSpec, knob

CONTENT_NAMES = ("content", "code")  # or a text that has a path
PATH_NAMES = ("path", "file", "filename", "file_path")
CHARACTERS_A_TOKEN = 3  # of code, about
GAPS = 24  # places in held-out files that are completed at each evaluation
NEAR = 256  # tokens around a gap that the model reads then
LINE = Sampling(max_tokens=32, stop=["\n"])  # how a gap is filled
MOST_COMPARED = 1_000_000  # different files among which copies are looked for
COUNTED = ("gaps", "matched", "checked", "valid")
FEWEST = 4  # characters of a line that is worth completing
SHOWN = 400  # characters of a sample's prompt


FILES = {
    "area.py": "def area(width, height):\n    return width * height\n",
    "greet.py": "def greet(name):\n    print('Hello, ' + name)\n",
    "count.py": "total = 0\nfor n in range(10):\n    total += n\nprint(total)\n",
    "even.py": "def even(number):\n    return number % 2 == 0\n",
    "first.py": "def first(items):\n    return items[0] if items else None\n",
    "read.py": "def read(path):\n    with open(path) as file:\n        return file.read()\n",
    "power.py": "def power(base, exponent):\n    return base**exponent\n",
    "point.py": "class Point:\n    def __init__(self, x, y):\n        self.x, self.y = x, y\n",
    "longest.py": "def longest(words):\n    return max(words, key=len)\n",
    "settings.json": '{"name": "demo", "port": 8080}\n',
    "limits.json": '{"most": 10, "least": 1}\n',
    "project.toml": 'name = "demo"\nversion = "1.0"\n',
}


class CodeSpec(PretrainSpec, LoraSpec):
    """Knobs of code completion."""

    epochs: float = knob(4, gt=0, le=100, title="Epochs", help="Times that every file is seen.")
    max_length: int = knob(
        512,
        ge=64,
        le=131_072,
        title="Longest piece",
        help="Tokens; longer files are cut into pieces. Also what the model reads around a completion.",
    )
    fim_rate: float = knob(
        0.5,
        ge=0,
        le=1,
        title="Fill in the middle",
        help="Share of the pieces that are learned as suffix, prefix, middle; 0: the model only writes on.",
    )
    method: Literal["lora", "full"] = knob(
        "full",
        title="Weights",
        help="full trains every weight, lora a small adapter on a base model; from scratch it is full.",
    )


class Gap(NamedTuple):
    """The rest of a line, and all that stands before and behind it in its file."""

    before: str
    line: str
    after: str


class Code(Writer):
    """Next-token loss on files, some of them with their middle at the end."""

    name = "code"
    title = "Code completion"
    summary = "Teach a model your code: it completes it at the end, or between two pieces of it."
    paper = "https://arxiv.org/abs/2207.14255"
    spec = CodeSpec
    columns = (
        Column("content", "the code, a file a row", required=False),
        Column("path", "the file's name, which tells its language", required=False),
        Column("prompt", "in rows to be completed: the code before the cursor", required=False),
        Column("suffix", "in rows to be completed: the code behind the cursor", required=False),
    )
    example = [{"path": path, "content": content} for path, content in FILES.items()]
    metrics = (
        Metric("loss", "Loss", "lower"),
        Metric("syntax_valid", "Completions with valid syntax", "higher"),
        Metric("exact_match", "Lines completed exactly", "higher"),
    )
    head = "causal_lm"
    default_base_model = "scratch/gpt-tiny"
    place = 45

    def recognise(self, columns: Iterable[str]) -> dict[str, str] | None:
        """The content and the path of files, by their usual names."""
        names = set(columns)
        path = next((name for name in PATH_NAMES if name in names), None)
        known = (*CONTENT_NAMES, "text") if path else CONTENT_NAMES
        content = next((name for name in known if name in names), None)
        if content is None:
            return None
        return {"content": content} | ({"path": path} if path else {})

    def lacks(self, columns: dict[str, str]) -> str | None:
        """The content of files."""
        return None if "content" in columns else f"{self.title} needs a column for «content»: a file a row."

    def canonical(self, row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
        """{"content", "path"} of a file, or {"prompt", "suffix"} to be completed. Raises Refused for what is no text."""
        return {mine: text(row.get(theirs), mine) for mine, theirs in columns.items()}

    def findings(self, rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> Iterator[Finding]:
        """Cells that are no text are fatal; files that are empty or binary are left out."""
        number = usable = checked = copies = 0
        seen: set[bytes] = set()
        for number, row in enumerate(rows, 1):
            try:
                mine = self.canonical(row, columns)
            except Refused as wrong:
                yield Finding(wrong.message, number, columns.get(wrong.param or ""))
                continue
            if reason := useless(mine["content"]):
                yield Finding(f"{reason}; the row is left out.", number, columns["content"], fatal=False)
                continue
            usable += 1
            checked += "path" in mine and syntax.known(mine["path"])
            if len(seen) < MOST_COMPARED:
                known = groups.key(mine["content"])
                copies += known in seen
                seen.add(known)
        yield from about_files(number, usable, checked, copies)

    def input(self, row: dict[str, Any]) -> dict[str, Any]:
        """The code before the cursor and behind it; a file is written on at its end."""
        given = {"prompt": row.get("prompt", row.get("content", ""))}
        return given | ({"suffix": row["suffix"]} if row.get("suffix") else {})

    def examples(self, rows: int, characters: int, spec: CodeSpec) -> int:
        """Pieces: each file has at least one."""
        return max(rows, round(rows / 2 + characters / CHARACTERS_A_TOKEN / spec.max_length))

    def facts(
        self, rows: Sequence[dict[str, Any]], spec: CodeSpec, earlier: dict[str, Any]
    ) -> dict[str, Any]:
        """{"fim": whether it learned to fill in the middle}."""
        return {"fim": earlier.get("fim", False) or spec.fim_rate > 0}

    def split(
        self, rows: Sequence[dict[str, Any]], fraction: float, seed: int
    ) -> tuple[list[int], list[int]]:
        """Whole files are held out, together with their copies."""
        return groups.held_out((groups.key(row["content"]) for row in rows), fraction, seed)

    def load_tokenizer(self, folder: Any, rows: Sequence[dict[str, Any]], spec: CodeSpec) -> Any:
        """The base model's, with a padding token. Raises Refused where it has no token that ends a text."""
        lstm.register()
        tokenizer = super().load_tokenizer(folder, rows, spec)
        if tokenizer.eos_token_id is None:
            raise Refused("This base model's tokenizer has no token that ends a text.", param="model")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def train_tokenizer(self, rows: Sequence[dict[str, Any]], spec: CodeSpec) -> Any:
        """Learned from the files, with the three marks of fill-in-the-middle."""
        from shared.learning.tokenizers import train

        return train((row["content"] for row in rows), spec, infilling.MARKS)

    def build_model(self, learner: Learner) -> Any:
        """A language model of the preset's size."""
        from shared.learning.language_model import build

        return build(learner)

    def encode(self, row: dict[str, Any], learner: Learner) -> list[Item]:
        """Pieces of the file, `input_ids` each, as they stand or with their middle at the end."""
        if reason := useless(row["content"]):
            raise Refused(f"{reason}.")
        rate = learner.spec.fim_rate
        pieces = infilling.sequences(row["content"], learner.tokenizer, longest(learner), rate)
        return [{"input_ids": ids} for ids in pieces]

    def collate(self, items: list[Item], learner: Learner) -> Batch:
        """The pieces side by side."""
        from shared.learning.language_model import collate_blocks

        return collate_blocks(items)

    def loss(self, learner: Learner, batch: Batch) -> Loss:
        """Cross-entropy of every token."""
        from shared.learning.language_model import answer_loss

        return Loss(answer_loss(learner.model, batch), len(batch["targets"]))

    def judged(self, learner: Learner, batch: Batch) -> list[Judged]:
        """Of each piece: summed loss, tokens; none of its gaps yet."""
        from shared.learning.language_model import answer_sums

        return [sums | dict.fromkeys(COUNTED, 0) for sums in answer_sums(learner.model, batch)]

    def asks(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[int]:
        """Files with the up to 24 gaps that are filled."""
        return sorted({place for place, _ in chosen(rows, list(range(len(rows))))})

    def answered(
        self,
        learner: Learner,
        rows: Sequence[dict[str, Any]],
        items: Mapping[int, Item],
        places: Sequence[int],
    ) -> dict[int, Judged]:
        """Of each file how many gaps were filled as they were, and how many of those whose syntax can be checked
        left the file valid.
        """
        gaps = [(place, gap) for place, gap in chosen(rows, list(range(len(rows)))) if place in places]
        lines = self.filled(learner, [gap for _, gap in gaps])
        found: dict[int, Judged] = {place: dict.fromkeys(COUNTED, 0) for place in places}
        for (place, gap), line in zip(gaps, lines, strict=True):
            judged, path = found[place], rows[place].get("path", "")
            judged["gaps"] += 1
            judged["matched"] += line.rstrip() == gap.line.rstrip()
            if syntax.known(path) and syntax.valid(path, "".join(gap)):
                judged["checked"] += 1
                judged["valid"] += syntax.valid(path, gap.before + line + gap.after)
        return found

    def scored(self, sums: dict[str, float]) -> dict[str, float]:
        """Loss is a mean over tokens, the two rates over gaps; 0 where there is none."""
        return {
            "loss": sums["loss"] / max(sums["weight"], 1),
            "syntax_valid": sums["valid"] / max(sums["checked"], 1),
            "exact_match": sums["matched"] / max(sums["gaps"], 1),
        }

    def sample(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """A line's rest in each of the rows, and how the model completes it."""
        gaps = [gap for _, gap in chosen(rows, list(range(len(rows))), len(rows))]
        return [
            {"prompt": gap.before[-SHOWN:], "expected": gap.line, "answer": line}
            for gap, line in zip(gaps, self.filled(learner, gaps), strict=True)
        ]

    def filled(self, learner: Learner, gaps: list[Gap]) -> list[str]:
        """The model's line for each gap, up to its end."""
        between = can_fill(learner)
        items = [self.encode_input(near(gap) | ({} if between else {"suffix": ""}), learner) for gap in gaps]
        outputs = self.written(learner, items, [LINE] * len(items), NEAR) if items else []
        return [output["text"] for output in outputs]

    def encode_input(self, given: dict[str, Any], learner: Learner) -> Item:
        """Tokens of the prompt, and of the suffix where there is one. Raises Refused."""
        for name in ("prompt", "suffix"):
            if not isinstance(given.get(name) or "", str):
                raise Refused(f"«{name}» must be text.", param=name)
        prompt, suffix = given.get("prompt") or "", given.get("suffix") or ""
        if not prompt and not suffix:
            raise Refused("The input needs a «prompt»: the code before the cursor.", param="prompt")
        if suffix and not can_fill(learner):
            raise Refused(
                "This model has not learned to fill in the middle: leave out the «suffix», or train with a"
                " «fim_rate» above 0.",
                param="suffix",
            )
        item = {"prompt": infilling.tokens(prompt, learner.tokenizer)}
        return item | ({"suffix": infilling.tokens(suffix, learner.tokenizer)} if suffix else {})

    def length(self, item: Item) -> int:
        """Tokens of a piece, or of what stands around the cursor."""
        if "input_ids" in item:
            return len(item["input_ids"])
        return len(item["prompt"]) + len(item.get("suffix", []))

    def predict(self, learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
        """[{text}]: what stands at the cursor."""
        return self.written(learner, items, sampling, longest(learner))

    def written(
        self, learner: Learner, items: list[Item], sampling: list[Sampling], room: int
    ) -> list[dict[str, str]]:
        """[{text}], read and written in at most `room` tokens, of which at least half are for reading."""
        from shared.learning.generation import generate

        ways = [replace(way, max_tokens=min(way.max_tokens, room // 2)) for way in sampling]
        left = room - max(way.max_tokens for way in ways)
        known = infilling.marks(learner.tokenizer)
        prompts = [infilling.question(item["prompt"], item.get("suffix"), known, left) for item in items]
        outputs = generate(learner.model, learner.tokenizer, prompts, ways, strip=False)
        return [{"text": output["content"]} for output in outputs]

    def usage(self, learner: Learner) -> str:
        """Complete by transformers alone, with the marks that this model knows; an LSTM by torch alone."""
        if learner.model.config.model_type == lstm.MODEL_TYPE:
            return lstm.PLAIN
        asked = infilling.spelled("def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n", learner.tokenizer)
        if not can_fill(learner):
            asked = "def add(a, b):\n    return "
        start = learner.tokenizer.bos_token or learner.tokenizer.eos_token
        return (
            opened(learner, self.opens_with) + f"asked = {start + asked!r}\n"
            'inputs = tokenizer(asked, add_special_tokens=False, return_tensors="pt")\n'
            "inputs.pop('token_type_ids', None)\n"
            "written = model.generate(**inputs, max_new_tokens=48)[0, inputs['input_ids'].shape[1] :]\n"
            "print(tokenizer.decode(written, skip_special_tokens=True))\n"
        )


def useless(content: str) -> str:
    """Why nothing can be learned from a file, if so."""
    if not content.strip():
        return "The file is empty"
    return "The file holds zero bytes: it is not text" if "\0" in content else ""


def about_files(rows: int, usable: int, checked: int, copies: int) -> Iterator[Finding]:
    """What is to be said of all files together."""
    if not usable:
        yield Finding("No row has code to learn from." if rows else "There are no rows.")
        return
    if copies:
        told = "1 file is a copy of another" if copies == 1 else f"{copies} files are copies of others"
        yield Finding(f"{told}; copies are held out together.", fatal=False)
    if not checked:
        told = f"No file is named as {syntax.NAMES} are: «syntax_valid» will stay 0, as no other syntax is checked."
        yield Finding(told, fatal=False)


def longest(learner: Learner) -> int:
    """Tokens that the model reads and writes at once."""
    from shared.learning.language_model import room

    return room(learner, learner.spec.max_length)


def can_fill(learner: Learner) -> bool:
    """Whether the model fills in the middle: it learned so here, or its tokenizer says that it did before."""
    return learner.facts.get("fim", infilling.native(learner.tokenizer) is not None)


def chosen(rows: Sequence[dict[str, Any]], places: list[int], most: int = GAPS) -> list[tuple[int, Gap]]:
    """Gaps in these rows, spread evenly over them; the same ones every time."""
    found = []
    for number in range(most if places else 0):
        place = places[number * len(places) // most]
        if gap := gap_in(rows[place]["content"], random.Random(f"{place}/{number}")):
            found.append((place, gap))
    return found


def near(gap: Gap) -> dict[str, str]:
    """What stands around a gap, as much as the model reads then."""
    return {"prompt": gap.before[-8 * NEAR :], "suffix": gap.after[: 8 * NEAR]}


def gap_in(content: str, dice: random.Random) -> Gap | None:
    """A gap from within a line's words to its end; None where no line has enough of them."""
    lines = content[: syntax.LONGEST].splitlines(keepends=True)
    usable = [n for n, line in enumerate(lines) if len(line.strip()) >= FEWEST]
    if not usable:
        return None
    number = dice.choice(usable)
    line = lines[number].rstrip("\r\n")
    start = sum(map(len, lines[:number]))
    first = len(line) - len(line.lstrip())
    cut = dice.randrange(
        first if start else first + 1, len(line.rstrip())
    )  # there is always something before it
    return Gap(content[: start + cut], line[cut:], content[start + len(line) :])


recipe = Code()
