from urllib.parse import parse_qsl, quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galmerhpc.preview import MAX_NBINS, Preview

# As the service's own page asks (FACTS: snapshot 27436, phi 30, theta 45, zoom 6).
QUERY = (
    "nbins=400&snap_id=27436&phi=30&theta=45&bins=0.16666666666666666&bri=4&xc=0&yc=0"
    "&gas=1&stars=1&halo=0&quantity=0"
)

previews = st.builds(
    Preview,
    nbins=st.integers(1, MAX_NBINS),
    snap_id=st.integers(0, 2**31 - 1),
    phi=st.floats(-180, 180),
    theta=st.floats(-90, 180),
    bins=st.floats(1e-3, 1e3),
    bri=st.floats(-100, 100),
    xc=st.floats(-1e4, 1e4),
    yc=st.floats(-1e4, 1e4),
    gas=st.booleans(),
    stars=st.booleans(),
    halo=st.booleans(),
    quantity=st.integers(0, 100),
)


@given(previews)
def test_a_preview_survives_the_query_string(preview: Preview) -> None:
    assert Preview.parse(preview.query()) == preview


def test_the_service_s_own_query_is_read_and_written_to_the_letter() -> None:
    preview = Preview.parse(QUERY)
    assert preview == Preview(400, 27436, 30, 45, 1 / 6, 4, 0, 0, True, True, False, 0)
    assert preview.query() == QUERY


@given(st.permutations(QUERY.split("&")))
def test_the_order_of_parameters_does_not_matter(parts: list[str]) -> None:
    assert Preview.parse("&".join(parts)) == Preview.parse(QUERY)


@given(st.sampled_from([name for name, _ in parse_qsl(QUERY)]))
def test_a_missing_or_repeated_parameter_is_refused(name: str) -> None:
    parts = QUERY.split("&")
    own = [part for part in parts if part.startswith(f"{name}=")]
    with pytest.raises(ValueError, match=f"'{name}' is missing"):
        Preview.parse("&".join(part for part in parts if part not in own))
    with pytest.raises(ValueError, match="twice"):
        Preview.parse("&".join([*parts, *own]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nbins", "0"),
        ("nbins", str(MAX_NBINS + 1)),
        ("nbins", "400.5"),
        ("snap_id", "-1"),
        ("snap_id", "9" * 5000),
        ("phi", "nan"),
        ("theta", "inf"),
        ("theta", "-90.5"),
        ("bins", "0"),
        ("bri", ""),
        ("gas", "2"),
        ("quantity", "<script>"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(name: str, value: str) -> None:
    values = {**dict(parse_qsl(QUERY)), name: value}
    with pytest.raises(ValueError, match=f"'{name}'"):
        Preview.parse(urlencode(values))


@given(st.text().filter(lambda text: text not in dict(parse_qsl(QUERY))))
def test_an_unknown_parameter_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown parameter"):
        Preview.parse(f"{QUERY}&{quote(name, safe='')}=1")


@given(st.text() | st.dictionaries(st.text(), st.text()).map(urlencode))
def test_any_other_text_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        Preview.parse(text)
