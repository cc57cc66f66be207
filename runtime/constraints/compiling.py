"""From what a request asks for to its constraint, with the model's vocabulary, and what was made kept for the next one."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import Conventions
from dlm_edge.runtime.constraints.automaton import ByteAutomaton
from dlm_edge.runtime.constraints.constraint import Constraint
from dlm_edge.runtime.constraints.grammar import GrammarAutomaton
from dlm_edge.runtime.constraints.json_schema import compile_json_schema
from dlm_edge.runtime.constraints.nfa import RegularAutomaton
from dlm_edge.runtime.constraints.regex import compile_regex
from dlm_edge.runtime.constraints.vocabulary import Vocabulary

KINDS = ("json_schema", "regex", "grammar")
MAX_KEPT = 3


class ConstraintCompiler:
    """Of one engine; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[str, Constraint] = OrderedDict()

    def constraint(self, given: Mapping[str, Any], tokenizer: Any, conventions: Conventions) -> Constraint:
        """`given`: one of KINDS with its value. Raises E-PARAM for what it says, E-TOK for the tokenizer."""
        if len(given) > 1:
            raise UsageProblem("E-PARAM", f"{' and '.join(given)} are given together", "give one of them")
        ((kind, source),) = given.items()
        with self._lock:
            if self._vocabulary is None:
                stops = {conventions.mask_id, conventions.eos_id, conventions.pad_id, *conventions.stop_ids}
                self._vocabulary = Vocabulary.of_tokenizer(tokenizer, {i for i in stops if i is not None})
            vocabulary = self._vocabulary
            key = f"{kind} {source if isinstance(source, str) else json.dumps(source, default=repr)}"
            constraint = self._kept.pop(key, None)
        if constraint is None or is_worn(constraint.automaton):
            constraint = Constraint(compiled(kind, source), vocabulary, conventions.stop_ids)
        if kind != "grammar":  # what a grammar's automaton allows may depend on what was asked of it before
            with self._lock:
                self._kept[key] = constraint
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
        return constraint


def compiled(kind: str, source: Any) -> ByteAutomaton:
    if kind == "json_schema":
        return compile_json_schema(source)
    return compile_regex(source) if kind == "regex" else GrammarAutomaton(source)


def is_worn(automaton: ByteAutomaton) -> bool:
    """Whether the requests so far have used up what one is allowed."""
    return isinstance(automaton, RegularAutomaton) and automaton.is_worn
