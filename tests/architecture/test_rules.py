"""The rules of the house that a linter cannot say. Each one names the place that breaks it."""

import ast
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAINING_LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "diffusers", "sklearn")
LONGEST_FILE, LONGEST_FUNCTION = 500, 60


@lru_cache(maxsize=1)
def sources() -> dict[str, ast.Module]:
    """{path from the root: syntax tree} of the product's own Python files."""
    paths = [p for top in ("web", "worker", "shared", "migrations") for p in (ROOT / top).rglob("*.py")]
    return {
        str(p.relative_to(ROOT)): ast.parse(p.read_text()) for p in paths if "node_modules" not in p.parts
    }


def code() -> list[str]:
    return [name for name in sources() if not name.startswith("migrations/versions")]


@pytest.mark.parametrize("name", code())
def test_a_file_is_one_noun_of_at_most_500_lines(name):
    assert len((ROOT / name).read_text().splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("name", code())
def test_a_function_is_at_most_60_lines(name):
    functions = [n for n in ast.walk(sources()[name]) if isinstance(n, ast.FunctionDef)]
    long = [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= LONGEST_FUNCTION]
    assert not long


def test_only_jobs_py_writes_the_state_of_a_job():
    writers = {name for name, tree in sources().items() if any(writes_job_state(n) for n in ast.walk(tree))}
    assert writers == {"shared/jobs.py"}


def writes_job_state(node: ast.AST) -> bool:
    """`x.state = State.…`, `values(state=State.…)` or SQL text that sets jobs.state."""
    if isinstance(node, ast.Assign):
        targets = [part for target in node.targets for part in ast.walk(target)]
        on_state = any(isinstance(part, ast.Attribute) and part.attr == "state" for part in targets)
        return on_state and names_a_state(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "values":
        return any(k.arg == "state" and names_a_state(k.value) for k in node.keywords)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return bool(
            re.search(r"update\s+jobs\s+set\b((?!\bwhere\b)[^;])*\bstate\s*=", node.value, re.IGNORECASE)
        )
    return False


def names_a_state(value: ast.AST) -> bool:
    return bool(re.search(r"(?<!\w)(tables\.)?State\.\w+", ast.unparse(value)))


def test_the_web_starts_without_the_training_libraries():
    program = f"import web, sys; web.create_app; print([m for m in {TRAINING_LIBRARIES} if m in sys.modules])"
    assert in_fresh_interpreter(program) == "[]"


def test_the_worker_process_starts_without_the_training_libraries():
    program = f"import worker.runner, sys; print([m for m in {TRAINING_LIBRARIES} if m in sys.modules])"
    assert in_fresh_interpreter(program) == "[]"


def in_fresh_interpreter(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    return done.stdout.strip().splitlines()[-1]


FORBIDDEN = {
    r"\btorch\.load\b|\bpickle\b\s*\.|^\s*import pickle|allow_pickle\s*=\s*True": "pickle runs code",
    r"shell\s*=\s*True|\bos\.system\b": "a shell reads what users write",
    r"trust_remote_code\s*=\s*True": "a model's own code never runs",
    r"\bdatetime\.(utcnow|now)\(\)": "times are aware",
    r"\bMarkup\(": "pages escape what they show",
}


@pytest.mark.parametrize(("pattern", "why"), FORBIDDEN.items())
def test_dangerous_calls_stand_nowhere(pattern, why):
    hits = [
        f"{name}:{number}"
        for name in code()
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not hits, why


def test_pages_have_no_inline_script_or_style_and_escape_everything():
    inline = re.compile(
        r"\|\s*safe\b|<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=\"|innerHTML|javascript:"
    )
    files = [*(ROOT / "web/templates").rglob("*.html"), *(ROOT / "web/static").rglob("*.js")]
    hits = [
        f"{p.relative_to(ROOT)}:{n}"
        for p in files
        for n, line in enumerate(p.read_text().splitlines(), 1)
        if inline.search(line)
    ]
    assert files
    assert not hits


def test_every_setting_is_documented():
    from shared.settings import Settings

    page = (ROOT / "docs/settings.md").read_text()
    missing = [name.upper() for name in Settings.model_fields if f"`{name.upper()}`" not in page]
    assert not missing


def test_every_recipe_has_a_page():
    from shared.recipe import recipes

    missing = [name for name in recipes() if not (ROOT / f"docs/recipes/{name}.md").exists()]
    assert recipes()
    assert not missing


def test_the_glossary_has_every_word_of_the_tables():
    from shared.tables import EventType, Kind, State

    page = (ROOT / "docs/glossary.md").read_text()
    missing = [w for kind in (Kind, State, EventType) for w in kind if f"`{w.value}`" not in page]
    assert not missing


def test_the_repository_holds_no_third_party_code():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT)
    foreign = [
        f for f in tracked.stdout.splitlines() if re.search(r"node_modules/|/vendor/|\.min\.(js|css)$", f)
    ]
    assert not foreign
