"""The package can be used elsewhere: it imports Celery, its dependencies, and nothing of this project."""

import ast
import sys
from pathlib import Path

import reliable_celery

ALLOWED = {"amqp", "billiard", "celery", "kombu", "redis", "vine", "reliable_celery"}


def test_it_imports_celery_kombu_redis_and_the_standard_library_only():
    folder = Path(reliable_celery.__file__).parent
    files = list(folder.rglob("*.py"))
    imported = {name for file in files for name in _imported(ast.parse(file.read_text()))}

    assert len(files) > 20
    assert imported - set(sys.stdlib_module_names) == ALLOWED - {"vine"}


def _imported(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(str(node.module).partition(".")[0])
    return found
