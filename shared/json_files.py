"""One JSON document as rows: an array of objects, or SQuAD's articles, paragraphs and questions.

It is read as a whole, so its size is bounded; larger data comes as JSONL. Rows count from 1: elements of
the array, questions of SQuAD in the order of the file.
"""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from shared.formats import (
    BOM,
    LINE,
    MIB,
    BadRow,
    check_letters,
    check_shape,
    not_json,
    quoted,
    reason_of,
    refused,
)

MOST = 128 * MIB
LISTS = ("data", "rows", "examples", "train")  # of an object around the rows
WANTED = (
    'Rows come as an array of objects, as SQuAD\'s articles ({"data": [{"paragraphs": …}]}), or as JSONL: one'
    " object on each line."
)

Row = dict[str, Any]


def document_rows(file: BinaryIO) -> Iterator[tuple[int, Row]]:
    """(number, row) of the document. Raises Refused and BadRow."""
    data = file.read(MOST + 1)
    if len(data) > MOST:
        raise refused(
            f"The file is one JSON document of more than {MOST // MIB} MiB, and that is read as a whole. Write JSONL:"
            " one object on each line. `jq -c '.[]' data.json > data.jsonl` rewrites an array.",
            "file_too_large",
        )
    document = parsed(data)
    if articles := squad_articles(document):
        yield from squad_rows(articles)
    else:
        yield from object_rows(rows_in(document))


def parsed(data: bytes) -> Any:
    """The document. Raises Refused with the place of what is wrong."""
    try:
        return json.loads(data.removeprefix(BOM).decode(), parse_constant=not_json)
    except UnicodeDecodeError as wrong:
        line = data.count(b"\n", 0, wrong.start) + 1
        raise refused(
            f"Line {line} is not UTF-8 (byte 0x{data[wrong.start]:02X}). Save the file as UTF-8.",
            "invalid_encoding",
        ) from None
    except json.JSONDecodeError as wrong:
        near = quoted(wrong.doc[max(0, wrong.pos - 20) : wrong.pos + 20])
        raise refused(
            f"The file is not JSON: {wrong.msg} at line {wrong.lineno}, character {wrong.colno}, near «{near}».",
            "invalid_file_format",
        ) from None
    except RecursionError:
        raise refused("The JSON is nested too deep. Flatten it.", "invalid_file_format") from None
    except ValueError as wrong:
        raise refused(f"The file is not JSON: {reason_of(wrong)}.", "invalid_file_format") from None


def rows_in(document: Any) -> list[Any]:
    """The array of rows: the document itself, or the one list in an object around it. Raises Refused."""
    inner = document
    if isinstance(document, dict):
        inner = next((document[name] for name in LISTS if isinstance(document.get(name), list)), None)
    if not isinstance(inner, list):
        what = "object without a list of rows" if isinstance(document, dict) else "value"
        raise refused(f"The file is one JSON {what}. {WANTED}", "invalid_file_format")
    if not inner:
        raise refused("The JSON array is empty. Put at least one row into it.", "empty_file")
    return inner


def object_rows(rows: list[Any]) -> Iterator[tuple[int, Row]]:
    """The objects of an array. Raises BadRow."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row:
            begins = quoted(json.dumps(row, ensure_ascii=False))
            raise BadRow(number, f"Row {number} is not an object with fields: it is «{begins}». {WANTED}")
        yield number, checked(number, row)


def checked(number: int, row: Row) -> Row:
    """The row. Raises BadRow for what no row may hold."""
    check_shape(number, row)
    check_letters(number, row)
    if any(isinstance(value, str) and len(value) > LINE for value in row.values()):
        raise BadRow(number, f"A cell of row {number} is larger than {LINE // MIB} MB. Split it.")
    return row


# --- SQuAD ------------------------------------------------------------------------------------------


def squad_articles(document: Any) -> list[Any]:
    """The articles of a document in SQuAD's form; nothing for any other."""
    articles = document.get("data") if isinstance(document, dict) else None
    listed = articles if isinstance(articles, list) else []
    return listed if any(isinstance(one, dict) and "paragraphs" in one for one in listed) else []


def squad_rows(articles: list[Any]) -> Iterator[tuple[int, Row]]:
    """A row for each question: question, context, answers, id, title. Raises BadRow naming the article,
    paragraph and question.

    Rajpurkar et al. 2016 and 2018; versions 1.1 and 2.0, whose impossible questions have no answers.
    """
    number = 0
    for article_number, article in enumerate(articles, 1):
        title = article.get("title") if isinstance(article, dict) else None
        where = f"Article {article_number}" + (f" («{quoted(str(title))}»)" if title else "")
        for place, paragraph in enumerate(inner_list(article, "paragraphs", where, number + 1), 1):
            within = f"{where}, paragraph {place}"
            context = text_of(paragraph, "context", within, number + 1)
            for asked, qa in enumerate(inner_list(paragraph, "qas", within, number + 1), 1):
                number += 1
                row = question(qa, f"{within}, question {asked}", number)
                yield number, checked(number, row | {"context": context, "title": title and str(title)})
    if not number:
        raise refused("The file has SQuAD's form and no question in it.", "empty_file")


def question(qa: Any, where: str, number: int) -> Row:
    """One question without its context. Raises BadRow."""
    asked = text_of(qa, "question", where, number)
    impossible = qa.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise BadRow(number, f"{where}: «is_impossible» must be true or false.")
    given = [] if impossible else qa.get("answers")
    answers = None if given is None else several(given, where, number)
    return {"question": asked, "context": "", "answers": answers, "id": known_as(qa.get("id"))}


def several(given: Any, where: str, number: int) -> dict[str, list[Any]]:
    """{text: […], answer_start: […]} of SQuAD's list of answers. Raises BadRow."""
    texts, starts = [], []
    for answer in given if isinstance(given, list) else [None]:
        text = answer.get("text") if isinstance(answer, dict) else None
        start = answer.get("answer_start") if isinstance(answer, dict) else None
        if not isinstance(text, str) or isinstance(start, bool) or not isinstance(start, int):
            raise BadRow(
                number,
                f'{where}: the answers must be a list of {{"text": "…", "answer_start": 0}}; one is'
                f" «{quoted(json.dumps(answer if isinstance(given, list) else given, ensure_ascii=False))}».",
            )
        texts.append(text)
        starts.append(start)
    return {"text": texts, "answer_start": starts}


def known_as(value: Any) -> str | None:
    """An id as text."""
    return None if value is None else str(value)


def inner_list(value: Any, name: str, where: str, number: int) -> list[Any]:
    """The list of that name. Raises BadRow."""
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise BadRow(number, f"{where} has no list «{name}».")
    return found


def text_of(value: Any, name: str, where: str, number: int) -> str:
    """The text of that name. Raises BadRow."""
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, str):
        raise BadRow(number, f"{where} has no text «{name}».")
    return found
