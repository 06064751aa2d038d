"""Coverage-guided fuzzing of everything that reads what strangers wrote.

A target is one module in `tests/fuzz/targets`; its name is the target's. It has

    SEEDS       inputs to begin with: one of each kind that is valid, and whatever has ever broken the parser
    fuzz(data)  reads `data`; returns, or raises what is wrong

and, where they help, WORDS (bytes that mean something to the parser), MAX_BYTES (of an input), `prepare(directory)`
(called once, after every import, with a directory to work in) and `mutate(data, max_bytes, random)` (a change that
keeps checksums right, say).

`fuzz` lets nothing pass but the one error that the parser documents, which it catches itself, and asserts what must
hold of the rest: what was read comes back when it is written, sizes are bounded, an error's text is short and on one
line (`assert_sound`). The runner bounds time and memory. So a new target is some twenty lines, and nothing else has to
know of it: `test_smoke.py` finds it, and runs it for a moment, the same inputs each time.

    python tests/fuzz/run.py TARGET --seconds 600        for long, with other inputs each time
    python tests/fuzz/run.py TARGET --input FILE         one input again; what was found is written to such a file

An input that broke something becomes a seed, and a test of its own beside the parser's others.
"""

from __future__ import annotations

MAX_ERROR_CHARS = 4000


def assert_sound(error: Exception, begins: str = "", without: str | None = None) -> None:
    """An error's text is for a log and a status: short, on one line, and tells something."""
    text = str(error)
    assert text.startswith(begins), text
    assert without is None or without not in text
    assert text, "an error without a text"
    assert len(text) <= MAX_ERROR_CHARS, f"an error of {len(text)} characters: {text[:300]!r}"
    assert text.isprintable(), f"an error with control characters: {text[:300]!r}"
