"""What prepare.py wrote, loaded once and shared by the data workers."""
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece


class Prepared:
    """`self[name]` is an array of data.npz, `row(name, i)` row i of a ragged one."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = folder = Path(folder)
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
        with np.load(folder / "data.npz") as file:
            self._arrays = {name: file[name] for name in file.files}
        self.recall = self.model.piece_to_id("<|recall|>")
        self.newline = self.model.piece_to_id("\n")
        self.words = self["words"].tobytes().decode().split("\n")
        self.names = self["names"].tobytes().decode().split("\n")

        # Contexts that have questions; question_of[c] .. question_of[c + 1] are those of context c.
        count = len(self["tr_ctx_off"]) - 1
        self.question_of = np.searchsorted(self["tr_qc"], np.arange(count + 1))
        self.contexts = np.flatnonzero(np.diff(self.question_of))
        self.by_title: dict[int, np.ndarray] = {
            int(title): self.contexts[self["tr_title"][self.contexts] == title]
            for title in np.unique(self["tr_title"][self.contexts])}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def row(self, name: str, i: int) -> np.ndarray:
        offsets = self._arrays[name + "_off"]
        return self._arrays[name][offsets[i]:offsets[i + 1]]

    @cached_property
    def sentence_ends(self) -> np.ndarray:
        """Pieces that end a sentence."""
        pieces = [self.model.piece_to_id(piece) for piece in (".", "!", "?", '."', '!"', '?"')]
        return np.array([piece for piece in pieces if piece != self.model.unk_id()])

    @cached_property
    def sentence_starts(self) -> np.ndarray:
        """Where sentences of the prose begin."""
        return np.flatnonzero(np.isin(self["prose"], self.sentence_ends))[:-1] + 1

    @cached_property
    def turn_starts(self) -> np.ndarray:
        """Where turns of the dialogues begin."""
        return np.concatenate([[0], np.flatnonzero(self["dial"] == self.newline)[:-1] + 1])

    @cached_property
    def word_starts(self) -> np.ndarray:
        """[vocabulary] bool: pieces that begin a word; special pieces too."""
        size = self.model.get_piece_size()
        return np.array([i <= self.newline or self.model.id_to_piece(i).startswith("\u2581") for i in range(size)])

    @cached_property
    def rarity(self) -> np.ndarray:
        """[vocabulary] chance to keep a word in a half-remembered passage, higher when its first piece is rare."""
        text = np.concatenate([self["prose"][:3_000_000], self["dial"][:3_000_000]])
        share = np.bincount(text, minlength=self.model.get_piece_size()) / max(1, len(text))
        return np.clip(0.25 - 0.12 * np.log10(share + 1e-6), 0.2, 0.9)

    def warm(self) -> None:
        """Computes what is computed on demand, so that forked workers share it."""
        self.sentence_starts, self.turn_starts, self.word_starts, self.rarity
