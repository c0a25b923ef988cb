"""Small files of our own writing in the shapes that are converted."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@pytest.fixture
def json_file(tmp_path):
    """Writes a value as JSON, or a list as JSON lines where the name ends so: its path."""
    def write(name: str, value) -> Path:
        path = tmp_path / name
        text = "\n".join(map(json.dumps, value)) if name.endswith(".jsonl") else json.dumps(value)
        path.write_text(text, encoding="utf-8")
        return path
    return write


def compress(path: Path, records: list[dict]) -> None:
    raw = "\n".join(json.dumps(record) for record in records).encode()
    try:
        import zstandard
        path.write_bytes(zstandard.compress(raw))
    except ImportError:
        subprocess.run(["zstd", "-q", "-o", str(path)], input=raw, check=True)
