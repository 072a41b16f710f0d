"""What a dataset's zip holds, told by its table of contents: one file of rows, or a folder of pictures,
sounds, texts or code. Names decide; what is in the files is for the importer to see.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal
from zipfile import ZipInfo

from shared.errors import Refused
from shared.formats import TEXT, quoted

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
OTHER_PICTURES = (".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl")
SOUNDS = (".wav", ".wave")
OTHER_SOUNDS = (".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff", ".amr")
ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
CODE = (
    ".py", ".pyi", ".pyx", ".js", ".mjs", ".cjs", ".jsx", ".ts", ".tsx", ".java", ".kt", ".kts", ".scala", ".groovy",
    ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".cs", ".go", ".rs", ".rb", ".php", ".swift", ".m", ".mm", ".pl",
    ".pm", ".lua", ".r", ".jl", ".hs", ".ml", ".mli", ".ex", ".exs", ".erl", ".clj", ".cljs", ".dart", ".zig", ".nim",
    ".f90", ".f95", ".f", ".pas", ".d", ".v", ".vhd", ".sv", ".sql", ".sh", ".bash", ".zsh", ".ps1", ".html", ".css",
    ".scss", ".vue", ".svelte", ".proto", ".graphql", ".tf", ".cu", ".cl", ".glsl", ".asm", ".s", ".lisp", ".el",
    ".scm", ".rkt",
)  # fmt: skip
CODE_NAMES = ("makefile", "dockerfile", "rakefile", "gemfile")
NOT_OURS = ("node_modules", "__MACOSX")  # never a file of the user's
VENDORED = ("vendor", "vendored", "third_party", "site-packages", "venv", "bower_components")
PAPERS = ("readme", "license", "licence", "copying", "changelog", "notice", "authors", "contributing")
CAPTIONS, TABLES = ("captions", "metadata"), (".csv", ".tsv", ".jsonl")  # beside pictures and sounds
KINDS = ("pictures", "sounds", "rows", "code", "texts")  # where two are as many, the earlier one

Kind = Literal["file", "pictures", "sounds", "code", "texts"]


@dataclass(frozen=True)
class Bundle:
    """The files to read, by path; those that caption them; the names of all that is left out."""

    kind: Kind
    entries: list[ZipInfo]
    captions: list[ZipInfo] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def look(members: Sequence[ZipInfo]) -> Bundle:
    """What the zip is, by what most of its files are. Raises Refused where nothing becomes rows."""
    seen = sorted((entry for entry in members if not is_hidden(path_of(entry))), key=path_of)
    if not seen:
        raise refused(
            "The zip holds hidden files alone. Put the data into it and upload it again.", "empty_file"
        )
    groups: dict[str, list[ZipInfo]] = {kind: [] for kind in (*KINDS, "captions", "")}
    for entry in seen:
        groups[kind_of(path_of(entry))].append(entry)
    kind = max(KINDS, key=lambda one: len(groups[one]))
    if (len(seen) == 1 and kind in ("rows", "texts")) or not groups[kind]:
        return Bundle("file", only(seen))
    if kind == "rows":
        chosen = Bundle("file", only(groups[kind]))
    elif kind in ("pictures", "sounds"):
        check_media(groups[kind], kind)
        chosen = Bundle(kind, groups[kind], groups["captions"])
    else:
        chosen = Bundle(kind, groups[kind])
    taken = {entry.filename for entry in (*chosen.entries, *chosen.captions)}
    chosen.left.extend(path_of(entry) for entry in seen if entry.filename not in taken)
    return chosen


def path_of(entry: ZipInfo) -> str:
    """The member's path with forward slashes."""
    return entry.filename.replace("\\", "/")


def is_hidden(path: str) -> bool:
    """Whether a tool keeps the file for itself: dot files, `.git`, `node_modules`."""
    parts = PurePosixPath(path).parts
    return any(part.startswith(".") or part in NOT_OURS for part in parts)


def kind_of(path: str) -> str:
    """What a file of that name is; nothing for what no recipe reads."""
    place = PurePosixPath(path)
    suffix, name = place.suffix.lower(), place.name.lower()
    if suffix in PICTURES + OTHER_PICTURES:
        return "pictures"
    if suffix in SOUNDS + OTHER_SOUNDS:
        return "sounds"
    if suffix in ROWS:
        return "captions" if place.stem.lower() in CAPTIONS and suffix in TABLES else "rows"
    if suffix in CODE or name in CODE_NAMES:
        return "" if any(part.lower() in VENDORED for part in place.parts[:-1]) else "code"
    if suffix in TEXT:
        return "" if place.stem.lower().startswith(PAPERS) else "texts"
    return ""


def only(entries: list[ZipInfo]) -> list[ZipInfo]:
    """The one file of rows. Raises Refused where there are more."""
    if len(entries) > 1:
        first, second = (quoted(path_of(entry)) for entry in entries[:2])
        raise refused(
            f"The zip holds {len(entries)} files («{first}», «{second}» …); a dataset's zip holds one file of rows,"
            " or many pictures, sounds, texts or code files. Upload each file by itself.",
            "too_many_members",
        )
    return entries


def check_media(entries: list[ZipInfo], kind: str) -> None:
    """Raises Refused where none of the pictures or sounds is of a format that is read."""
    read = PICTURES if kind == "pictures" else SOUNDS
    if any(PurePosixPath(path_of(entry)).suffix.lower() in read for entry in entries):
        return
    raise refused(f"«{quoted(path_of(entries[0]))}» cannot be read. {wanted(kind)}", "unsupported_format")


def wanted(kind: str) -> str:
    """Which formats of pictures or sounds are read, and how to get them."""
    if kind == "pictures":
        return "Pictures come as PNG, JPEG, WebP, BMP or GIF. Save it as PNG."
    return "Sounds come as WAV (PCM). `ffmpeg -i sound.mp3 -ac 1 sound.wav` makes one of nearly everything."


def refused(message: str, code: str) -> Refused:
    """A refusal of the uploaded zip."""
    return Refused(message, param="file", code=code)
