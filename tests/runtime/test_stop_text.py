"""Stop strings: the text before the first one, however it is cut into pieces."""

from __future__ import annotations

import random

import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.stop_text import StopText, check_stops


@pytest.mark.parametrize("seed", range(300))
def test_the_text_ends_before_the_first_stop_string(seed):
    rng = random.Random(seed)

    def word(low, high):
        return "".join(rng.choices("ab", k=rng.randint(low, high)))

    pieces, stops = [word(0, 6) for _ in range(rng.randint(0, 8))], [word(1, 4) for _ in range(rng.randint(0, 3))]
    watch, given_out = StopText(stops), []
    whole = "".join(pieces)
    for n, piece in enumerate(pieces):
        given_out.append(watch.push(piece))
        so_far = "".join(pieces[: n + 1])
        assert watch.found == any(stop in so_far for stop in stops)
    if not watch.found:
        given_out.append(watch.finish())
    ends = [whole.find(stop) for stop in stops if stop in whole]
    text = "".join(given_out)
    assert whole.startswith(text) and not any(stop in text for stop in stops)
    if not ends:
        assert text == whole
    elif len(stops) == 1:  # of several, one that began earlier may have been completed later
        assert text == whole[: ends[0]]


def test_nothing_of_a_stop_string_is_given_out_before_it_is_complete():
    watch = StopText(["\n\nUser:"])
    assert [watch.push(piece) for piece in ("Yes.\n", "\nUs", "e it.\n", "\nUser", ": and")] == [
        "Yes.", "", "\n\nUse it.", "", "",
    ]  # fmt: skip
    assert watch.found and watch.push("more") == "" and watch.finish() == ""


@pytest.mark.parametrize("stops", [[""], ["x" * 1025], ["x"] * 65])
def test_odd_stop_strings_are_refused(stops):
    with pytest.raises(UsageProblem):
        check_stops(stops)


def test_a_generation_ends_at_the_string_and_across_blocks(make_engine):
    engine = make_engine()
    whole = engine.generate([5, 6, 7], max_new_tokens=64)
    for first in (1, 9, 30):
        for length in (1, 3, 12):
            stop = whole.text[first : first + length]
            at = whole.text.find(stop)
            events = list(engine.stream([5, 6, 7], max_new_tokens=64, stop=[stop, "\x00never"]))
            result = events[-1].result
            assert (result.text, result.stop_reason) == (whole.text[:at], "stop")
            assert "".join(e.text for e in events if type(e).__name__ == "Text") == result.text
            assert result.token_ids == whole.token_ids[: len(result.token_ids)]
            assert result.text.startswith(engine.parts.codec.decode(result.token_ids))
            assert result.forward_passes <= whole.forward_passes
    assert engine.generate([5, 6, 7], max_new_tokens=64, stop="\x00never").text == whole.text
