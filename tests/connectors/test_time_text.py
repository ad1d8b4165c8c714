"""Times as text against a reference that makes the text from the parts of a known time."""

from datetime import UTC, date, datetime, timedelta, timezone

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.errors import ConfigError
from connectors.sources.casting import convert
from connectors.sources.event_time import parse_start_time, times_us
from connectors.sources.time_text import times_of_text

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def us(texts: list[str | None]) -> list[int | None]:
    return times_us(pa.array(texts, pa.string()), "iso").to_pylist()


def date_text(day: date, form: str, basic: bool) -> str:
    year, week, weekday = day.isocalendar()
    dash = "" if basic else "-"
    if form == "week" and year > 0:
        return f"{year:04d}{dash}W{week:02d}{dash}{weekday}"
    if form == "ordinal":
        return f"{day.year:04d}{dash}{day.timetuple().tm_yday:03d}"
    return f"{day.year:04d}{dash}{day.month:02d}{dash}{day.day:02d}"


@st.composite
def written_times(draw):
    """A time text and the microseconds that it means."""
    moment = draw(st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 30)))
    basic = draw(st.booleans())
    text = date_text(moment.date(), draw(st.sampled_from(["calendar", "calendar", "week", "ordinal"])), basic)
    if draw(st.integers(0, 9)) == 0:
        return text, (moment.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=UTC) - EPOCH) // MICROSECOND
    separator, colon = draw(st.sampled_from("TTt ")), "" if basic else ":"
    precision = draw(st.sampled_from(["hour", "minute", "second", "fraction", "fraction"]))
    moment = moment.replace(microsecond=0)
    text += f"{separator}{moment.hour:02d}"
    if precision == "hour":
        moment = moment.replace(minute=0)
    else:
        text += f"{colon}{moment.minute:02d}"
    if precision in ("hour", "minute"):
        moment = moment.replace(second=0)
    else:
        text += f"{colon}{moment.second:02d}"
    extra_us = 0
    if precision == "fraction":
        digits = draw(st.text("0123456789", min_size=1, max_size=20))
        text += draw(st.sampled_from(".,")) + digits
        extra_us = int(digits.ljust(6, "0")[:6])
    zone = draw(st.sampled_from(["", "Z", "z", "+HH", "+HHMM", "+HH:MM"]))
    offset = timedelta(0)
    if zone.startswith("+"):
        minutes = draw(st.integers(-23 * 60 - 59, 23 * 60 + 59))
        if zone == "+HH":
            minutes = int(minutes / 60) * 60
        offset = timedelta(minutes=minutes)
        hours, rest = divmod(abs(minutes), 60)
        zone = ("-" if minutes < 0 else "+") + f"{hours:02d}" + {"+HH": "", "+HHMM": f"{rest:02d}"}.get(zone, f":{rest:02d}")
    moment = moment.replace(tzinfo=timezone(offset))
    return text + zone, (moment - EPOCH) // MICROSECOND + extra_us


@settings(max_examples=50)
@given(st.lists(st.one_of(written_times(), st.just((None, None)), st.just(("soon", None))), min_size=1, max_size=8))
@pytest.mark.heavy
def test_any_time_of_iso_8601_and_rfc_3339_is_read_to_the_microsecond(rows):
    assert us([text for text, _ in rows]) == [time for _, time in rows]


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_any_other_text_is_no_time_and_no_failure(texts):
    for text, time in zip(texts, us(texts), strict=True):
        assert time is None or any(letter.isdecimal() for letter in text)


@settings(max_examples=40)
@given(
    st.lists(st.from_regex(r"\A[0-9]{4}-?[0-9]{2}-?[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|\+00:00)?)?\Z"))
)
@pytest.mark.heavy
def test_what_python_reads_is_read_alike(texts):
    for text, time in zip(texts, us(texts) if texts else [], strict=True):
        try:
            known = datetime.fromisoformat(text)
        except ValueError:
            continue
        assert time == (known.replace(tzinfo=known.tzinfo or UTC) - EPOCH) // MICROSECOND, text


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2024-01-01T00:00:01.1234567Z", "2024-01-01T00:00:01.123456"),  # .NET
        ("2024-01-01T00:00:02.123456789Z", "2024-01-01T00:00:02.123456"),  # Go, Docker
        ("2024-01-01T00:00:03,123Z", "2024-01-01T00:00:03.123000"),
        ("2024-01-01T00:00:04+00", "2024-01-01T00:00:04.000000"),  # PostgreSQL
        ("20240101T000005Z", "2024-01-01T00:00:05.000000"),
        ("2024-01-01T01:00:06+01:00[Europe/Paris]", "2024-01-01T00:00:06.000000"),  # Java
        ("2024-01-01 00:00:07 UTC", "2024-01-01T00:00:07.000000"),  # BigQuery
        ("2024-01-01 05:30:08 +0530", "2024-01-01T00:00:08.000000"),  # git, Ruby
        ("2024-01-01T00:00:09\u221200:00", "2024-01-01T00:00:09.000000"),  # the minus sign of ISO 8601
        ("2024-01-01T05:53:38+05:53:28", "2024-01-01T00:00:10.000000"),  # Python, of local mean time
        ("2023-12-31T24:00:00Z", "2024-01-01T00:00:00.000000"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000000"),  # a leap second
        ("2024-01-01T12,5", "2024-01-01T12:30:00.000000"),
        ("2024-01-01T12:30.25Z", "2024-01-01T12:30:15.000000"),
        ("1969-12-31T23:59:59.9999999Z", "1969-12-31T23:59:59.999999"),  # cut, never rounded
    ],
)
def test_notations_of_many_writers(text, meant):
    assert us([text, "2024-01-01"]) == [
        (datetime.fromisoformat(meant + "+00:00") - EPOCH) // MICROSECOND,
        us(["2024-01-01"])[0],
    ]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "2024-02-30",
            "2023-366",
            "2024-000",
            "2021-W53-1",
            "2024-W00-1",
            "2024-13-01",
            "2024-01-01T24:00:01",
            "2024-01-01T10:60",
        ),
        *("2024-01-01T10:00:61", "2024-01-01T10:30:60", "2024-01-01T10:00:00+24:00", "2024-01-01T10:00:00.", "2024", "2024-01"),
        *("2024-01-01T10:00:00Zulu", "2024-01-01T10:00:00 + 01", "0000-01-01", "12024-01-01", "", "now"),
    ],
)
def test_what_is_no_time_stays_none(text):
    assert us([text]) == [None]
    assert us(["2024-01-01T00:00:00.123456789Z", text])[1] is None


def test_declared_timestamps_are_cut_to_their_unit_and_keep_nanoseconds():
    texts = pa.array(["2024-01-01T00:00:00.123456789Z", "1969-12-31T23:59:59.9", "2300-01-01", None])
    assert times_of_text(texts, "ns").to_pylist() == [1_704_067_200_123_456_789, -100_000_000, None, None]
    assert times_of_text(texts, "s").to_pylist() == [1_704_067_200, -1, 10_413_792_000, None]
    assert convert(texts, pa.timestamp("ms", "UTC")).cast(pa.int64()).to_pylist() == [
        1_704_067_200_123,
        -100,
        10_413_792_000_000,
        None,
    ]
    dates = pa.array(["2024-01-02", "20240102", "2024-W01-2", "2024-01-02T00:00:00.5", "2024-01-02T03:00"])
    assert convert(dates, pa.date32()).to_pylist() == [date(2024, 1, 2)] * 3 + [None] * 2


def test_start_times_know_the_same_notations():
    assert parse_start_time("20240101T000005Z") == parse_start_time("2024-01-01T00:00:05.0000001+00") == 1_704_067_205_000_000
    with pytest.raises(ConfigError, match="start_time: 'noon' is not an ISO 8601 time"):
        parse_start_time("noon")
