"""What evaluations found, a JSON object a line, so that a later one adds to a file and stands for what was there before.

A record has a `kind`: that of a task (with length, asks, exact, first_alone, first_within), `prose` (length,
bits_per_byte) or `natural questions` (method, chunks, asks, at_1, at_5, ...).
"""
import json
from pathlib import Path

OF_TASKS = ("asks", "exact", "first_alone", "first_within")


def add(path: Path | None, record: dict) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[dict]:
    """The last record of each kind, length and method, in the order in which these came first."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        found[record["kind"], record.get("length"), record.get("method")] = record
    return list(found.values())


def of_tasks(records: list[dict]) -> list[dict]:
    return [record for record in records if "exact" in record]
