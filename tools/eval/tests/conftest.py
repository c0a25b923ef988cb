"""Small files of our own writing in the shapes that are converted."""
import json
import sys
from pathlib import Path

import pytest

# Behind other folders: tools/train has a tasks.py too.
sys.path.append(str(Path(__file__).resolve().parents[1]))


@pytest.fixture
def json_file(tmp_path):
    """Writes a value as JSON, or a list as JSON lines where the name ends so: its path."""
    def write(name: str, value) -> Path:
        path = tmp_path / name
        text = "\n".join(map(json.dumps, value)) if name.endswith(".jsonl") else json.dumps(value)
        path.write_text(text, encoding="utf-8")
        return path
    return write
