"""A small corpus of our own in the shapes that prepare.py reads, prepared once for all tests."""
import io
import json
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import sentencepiece

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import facts  # noqa: E402
import prepare  # noqa: E402
from prepared import Prepared  # noqa: E402

PEOPLE = ("Mina", "Oskar", "Tilda", "Bram")


def compress(path: Path, raw: bytes) -> None:
    try:
        import zstandard
        path.write_bytes(zstandard.compress(raw))
    except ImportError:
        subprocess.run(["zstd", "-q", "-o", str(path)], input=raw, check=True)


def tar_of(files: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


def write_corpus(folder: Path, rng: random.Random) -> str:
    """Sources in the shapes that prepare.py reads; returns their text."""
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "il")]
    words = sorted({"".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(400)})
    names = [word.capitalize() for word in words[::10]]

    def sentence() -> str:
        middle = rng.choices(words, k=rng.randint(4, 12))
        middle[rng.randrange(len(middle))] = rng.choice(names)
        return rng.choice(words).capitalize() + " " + " ".join(middle) + "."

    def text(sentences: int) -> str:
        return " ".join(sentence() for _ in range(sentences))

    novels = {f"en/Author{i:02d}_Tale_19{i:02d}.txt": "\n\n".join(text(8) for _ in range(20)) for i in range(12)}
    dialogues = [{"source": "own", "turns": [[rng.choice("AB"), sentence()] for _ in range(12)]} for _ in range(60)]
    records = []
    for i in range(40):
        context = text(9)
        qas = []
        for j in range(3):
            answer = " ".join(context.split()[5 + 7 * j:7 + 7 * j]).rstrip(".")
            qas.append({"q": f"What is told in part {j} of passage {i}?", "a": answer, "start": context.find(answer)})
        if i % 5 == 0:  # a question with two answers
            qas.append({"q": qas[0]["q"], "a": qas[1]["a"], "start": qas[1]["start"]})
        source = "squad_dev" if i < 16 else "own"
        records.append({"source": source, "title": f"Title {i % 8}", "context": context, "qas": qas})
    stories = {}
    for task in (1, 6):
        lines = []
        for _ in range(5):
            person, room = rng.choice(PEOPLE), rng.choice(("kitchen", "garden"))
            asked = f"Where is {person}? |{room}|1" if task == 1 else f"Is {person} in the {room}?\tyes\t1"
            lines += [f"1 {person} went to the {room}.", f"2 {asked}", "3 Nobody else moved."]
        for part in ("train", "test"):
            stories[f"en/qa{task}_tales_{part}.txt"] = "\n".join(lines if part == "train" else ["1 Held out."]) + "\n"

    json_text = lambda rows: "\n".join(json.dumps(row) for row in rows)
    for name, raw in (("dialogues.jsonl", json_text(dialogues).encode()), ("qa.jsonl", json_text(records).encode()),
                      ("novels.tar", tar_of(novels)), ("babi-en.tar", tar_of(stories))):
        compress(folder / f"{name}.zst", raw)
    return "\n".join([*novels.values(), *(turn for d in dialogues for _, turn in d["turns"]), *stories.values()])


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Prepared:
    folder = tmp_path_factory.mktemp("corpus")
    text = write_corpus(folder, random.Random(3))
    templates = [t for r in (*facts.NUMBERED, *facts.PERSONAL) for t in (*r.tell, *r.ask)]
    (folder / "text.txt").write_text(text + "\n" + "\n".join(templates))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "spm"), vocab_size=1200, byte_fallback=True,
        model_type="bpe", split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        user_defined_symbols=["<|recall|>", "<|user|>", "<|assistant|>", "\n", *"0123456789"], minloglevel=2)
    prepare.prepare(folder, folder / "spm.model", folder / "prepared")
    return Prepared(folder / "prepared")


@pytest.fixture(scope="session")
def small_config(small) -> dict:
    """config.json of a model for that corpus, as small as they come."""
    return {"model_type": "ramba", "hidden_size": 64, "num_heads": 2, "vocab_size": small.model.get_piece_size(),
            "num_lower_layers": 1, "num_upper_layers": 1, "num_mamba_per_gca": 1, "num_attention_heads": 2,
            "retrieval_dim": 32, "chunk_topk": 2, "enable_pos_decay": True, "recall_token_id": small.recall,
            "newline_token_id": small.newline}
