"""Guessed evidence beside marked evidence."""
import pytest
from compare_evidence import compare
from dataset import DataSet, Evidence, Question


def of(evidence, contents, text="What of the lid?"):
    data = DataSet("any")
    for content in contents:
        data.add_turn("m", {"content": content})
    data.questions = [Question("m", text, evidence)]
    return data


def test_the_share_counts_characters_in_marked_turns():
    marked = of([Evidence(1)], ["We begin.", "The lid {laugh} is red.", "Good."])
    guessed = of([Evidence(1, 0, 6), Evidence(2, 0, 2)], ["We begin.", "The lid is red.", "Good."])
    assert compare(guessed, marked) == (1, 1, pytest.approx(6 / 8))
    assert compare(of([Evidence(0)], ["We begin.", "The lid is red.", "Good."]), marked) == (1, 0, 0)


def test_other_questions_and_other_memories_do_not_count():
    marked = of([Evidence(0)], ["We begin."])
    assert compare(of([Evidence(0)], ["We begin."], "Why?"), marked)[0] == 0
    assert compare(of([Evidence(0)], ["Others began."]), marked)[0] == 0
