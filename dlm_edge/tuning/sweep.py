"""Running every candidate on every prompt, in turns, so that a busy moment of the machine hits all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime import Engine, Result
from dlm_edge.runtime.request import prepare
from dlm_edge.tuning.agreement import Agreement
from dlm_edge.tuning.grid import Candidate
from dlm_edge.tuning.prompts import Question

MIN_SEEN = 3  # a candidate is judged from one in so many prompts on


@dataclass(slots=True)
class Round:
    """Of one pass over the prompts, by prompt: tokens before the end of text, and seconds with the prompt's own."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def speed(self, n_prompts: int) -> float:
        """Effective tokens per second over the first prompts."""
        return sum(self.tokens[:n_prompts]) / sum(self.seconds[:n_prompts])


@dataclass(slots=True)
class Trial:
    """What was found of one candidate. All but the times is of the first round: later ones give the same texts."""

    candidate: Candidate
    refused: str = ""  # why this model or bundle cannot use it
    is_dropped: bool = False  # its agreement could not reach the target any more
    agreement: Agreement = field(default_factory=Agreement)
    rounds: list[Round] = field(default_factory=list)
    forward_passes: int = 0
    right: int = 0
    asked: int = 0  # prompts whose answer is known

    @property
    def seen(self) -> int:
        return len(self.agreement.equal)

    @property
    def steps_per_token(self) -> float:
        return self.forward_passes / max(sum(self.rounds[0].tokens), 1)

    def speed(self) -> float:
        return statistics.median(each.speed(self.seen) for each in self.rounds)

    def ratios(self, reference: Trial) -> list[float]:
        """Speed over the reference's of the same round and prompts, by round."""
        pairs = zip(self.rounds, reference.rounds, strict=False)
        return [own.speed(self.seen) / theirs.speed(self.seen) for own, theirs in pairs]


class Sweep:
    """`questions` in an order of which any first part is typical. The first candidate is the reference."""

    def __init__(
        self,
        engine: Engine,
        questions: Sequence[Question],
        tried: Sequence[Candidate],
        *,
        target: float,
        repeats: int,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.engine, self.questions, self.target, self.repeats = engine, questions, target, repeats
        self.seed, self.say = seed, say
        self.trials = [Trial(candidate) for candidate in tried]

    def run(self) -> list[Trial]:
        """Raises E-PROMPT where the reference says nothing at all, and what it raises."""
        for trial in self.trials:
            trial.refused = self.refusal(trial.candidate)
            if trial.refused:
                self.say(f"left out: {trial.candidate.label}: {trial.refused}")
        live = [trial for trial in self.trials if not trial.refused]
        self.say(
            f"{live[0].candidate.label}: {len(self.questions)} prompts, the texts that all others are compared with"
        )
        references = [self.generate(live[0].candidate, question) for question in self.questions]
        if not any(result.new_tokens for result in references):
            message = f"{live[0].candidate.label} ends every text before its first token"
            raise UsageProblem("E-PROMPT", message, "give prompts that this model answers, with --prompts")
        for number in range(self.repeats):
            self.say(f"round {number + 1} of {self.repeats}: {len(live)} settings")
            live = self.round(live, references, is_first=number == 0)
        return self.trials

    def refusal(self, candidate: Candidate) -> str:
        """Why the engine does not take it; nothing for one that it takes. The reference's refusal is raised."""
        try:
            settings = candidate.settings | self.settings(self.questions[0])
            prepare(self.engine.parts, self.engine.encode(self.questions[0].prompt), settings)
        except UsageProblem as error:
            if candidate is self.trials[0].candidate:
                raise
            return error.message
        return ""

    def round(self, live: Sequence[Trial], references: Sequence[Result], *, is_first: bool) -> list[Trial]:
        """Those that remain."""
        for trial in live:
            trial.rounds.append(Round())
        for i, question in enumerate(self.questions):
            start = i % len(live)
            for trial in [*live[start:], *live[:start]]:  # nobody always follows the same one
                if trial.is_dropped:
                    continue
                result = self.generate(trial.candidate, question)
                trial.rounds[-1].tokens.append(result.new_tokens)
                trial.rounds[-1].seconds.append(result.seconds)
                if is_first:
                    self.judge(trial, question, result, references)
        return [trial for trial in live if not trial.is_dropped]

    def judge(self, trial: Trial, question: Question, result: Result, references: Sequence[Result]) -> None:
        trial.agreement.add(references[trial.seen].token_ids, result.token_ids)
        trial.forward_passes += result.forward_passes
        if question.sample is not None:
            trial.asked += 1
            trial.right += question.sample.is_correct(result.text)
        left = [len(reference.token_ids) for reference in references[trial.seen :]]
        is_enough = MIN_SEEN * trial.seen >= len(self.questions) and trial is not self.trials[0]
        if is_enough and trial.agreement.best_possible(left) < self.target:
            trial.is_dropped = True
            found = f"agreement {trial.agreement.share:.3f} after {trial.seen} of {len(self.questions)} prompts"
            self.say(f"dropped: {trial.candidate.label}: {found}")

    def generate(self, candidate: Candidate, question: Question) -> Result:
        self.engine.forget_prompt()  # or only the first candidate of each prompt would read it
        return self.engine.generate(question.prompt, **candidate.settings, **self.settings(question))

    def settings(self, question: Question) -> dict[str, Any]:
        found: dict[str, Any] = {"seed": self.seed}
        return found if question.max_new_tokens is None else found | {"max_new_tokens": question.max_new_tokens}
