"""What the gateway's benchmark counts: it would be no use if its own reader lost events."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gateway.engine import END, FIRST, HEAD, STREAM_HEAD, TOKEN, WHOLE
from benchmarks.gateway.load import Answer, Client, Connection, arrivals


def received(data: bytes, cuts: list[int]) -> tuple[Answer, bool]:
    """The answer that comes of `data` in pieces, and whether its end was seen before the data's end."""
    answer, client = Answer(due=0), Client(port=0)
    connection = Connection(client)
    connection.answer = answer
    places = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    early = False
    for begin, end in pairwise(places):
        early = early or bool(answer.done)
        connection.data_received(data[begin:end])
    return answer, early


@given(tokens=st.integers(0, 20), cuts=st.lists(st.integers(0, 6000), max_size=20))
def test_each_event_of_a_stream_is_counted_once_however_it_arrives(tokens: int, cuts: list[int]) -> None:
    data = STREAM_HEAD + FIRST + TOKEN * tokens + END
    answer, early = received(data, cuts)
    # the role, the tokens, the reason, the counts, the closing word
    assert (answer.status, answer.events, early) == (200, tokens + 4, False)
    assert answer.done > 0


@given(cuts=st.lists(st.integers(0, 1000), max_size=10))
def test_a_whole_answer_ends_with_its_last_byte(cuts: list[int]) -> None:
    answer, early = received(HEAD + WHOLE, cuts)
    assert (answer.status, early) == (200, False)
    assert answer.done > 0


def test_arrivals_come_at_the_rate_and_the_same_each_time() -> None:
    moments = arrivals(300, 60, seed=1)
    assert moments == arrivals(300, 60, seed=1) != arrivals(300, 60, seed=2)
    assert moments == sorted(moments)
    assert 60 * 300 * 0.95 < len(moments) < 60 * 300 * 1.05
