"""What is asked of a memory when a model is evaluated, kind by kind."""
import random

import facts
from prepared import Prepared
from tasks import TaskMaker

# The task that tells it, the kind of its questions, and the relations that it may be about.
NUMBERS = tuple(relation for relation in facts.NUMBERED if relation.value in ("magic", "pin", "number", "price"))
KINDS = {"passkey": ("numbered", "numbered", tuple(r for r in facts.NUMBERED if r.name == "key of")),
         "numbered": ("numbered", "numbered", NUMBERS),
         "words": ("numbered", "numbered", tuple(r for r in facts.NUMBERED if r not in NUMBERS) + (facts.ATTRIBUTE,)),
         "personal": ("personal", "personal", ()),
         "multi_key": ("multi_key", "multi_key", NUMBERS),
         "multi_query": ("multi_key", "multi_query", NUMBERS),
         "multi_value": ("multi_value", "multi_value", NUMBERS),
         "variables": ("variables", "variables", ()),
         "updated": ("updated", "updated", ())}


class TasksAbout(TaskMaker):
    """Of some relations only, if any are given."""

    def __init__(self, prepared: Prepared, rng: random.Random, relations: tuple[facts.Relation, ...]):
        super().__init__(prepared, rng)
        self.relations = relations

    def _relation(self, *among):
        return self._choice(self.relations) if self.relations else super()._relation(*among)
