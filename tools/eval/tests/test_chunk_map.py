"""Where evidence lies in chunks that are cut anywhere."""
import pytest
from chunk_map import ChunkMap
from dataset import Evidence

TURNS = [{"content": "The key hangs\nhere."}, {"content": "Noted.", "role": "assistant"}, {"content": "Über uns.", "name": "Runa"}]
TEXT = "User: The key hangs\nhere.\nAssistant: Noted.\nRuna: Über uns.\n"


def cut(*places: int) -> list[str]:
    bounds = [0, *places]
    return [TEXT[a:b] for a, b in zip(bounds, bounds[1:])]


def test_what_follows_the_stored_chunks_is_the_open_one():
    made = ChunkMap.of("m", TURNS, cut(10, 30))
    assert made.texts == [TEXT[:10], TEXT[10:30], TEXT[30:]]
    assert ChunkMap.of("m", TURNS, []).texts == [TEXT]
    assert ChunkMap.of("m", TURNS, cut(30, len(TEXT))).texts == [TEXT[:30], TEXT[30:]]


def test_a_chunk_shows_a_turn_only_with_a_character_of_its_content():
    # The second chunk ends behind "Assistant: ", the third begins with what was said.
    said = TEXT.index("Noted")
    made = ChunkMap.of("m", TURNS, cut(10, said))
    assert made.turns_of == [{0}, {0}, {1, 2}]


def test_evidence_lies_in_every_chunk_with_one_of_its_characters():
    made = ChunkMap.of("m", TURNS, cut(8, 16, 24))
    assert TEXT[16:24] == "ngs\nhere"
    assert made.chunks_of(Evidence(0)) == {0, 1, 2, 3}
    key = TURNS[0]["content"].index("key")
    assert made.chunks_of(Evidence(0, key, key + 3)) == {1}
    assert made.chunks_of(Evidence(0, key, key + 7)) == {1, 2}
    assert made.chunks_of(Evidence(2)) == {3}


def test_evidence_that_ends_where_a_chunk_ends_is_not_in_the_next():
    made = ChunkMap.of("m", TURNS, cut(9, 13))
    assert TEXT[9:13] == TURNS[0]["content"][3:7]
    assert made.chunks_of(Evidence(0, 3, 7)) == {1}


def test_chunks_of_another_text_are_refused():
    with pytest.raises(SystemExit, match="memory m: its chunks are not the text of its turns from character 6 on"):
        ChunkMap.of("m", TURNS, ["User: A key"])
