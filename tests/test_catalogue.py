"""The catalogue: which views there are, in which order, and what they are called."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from galmerhpc.catalogue import Views, describe, preview, views_to_make
from galmerhpc.config import Angles, Catalogue, Render, Run, Snapshot, ViewGrid
from galmerhpc.dataset.split import ViewTable
from galmerhpc.errors import InputError
from galmerhpc.parameters import NAMES
from galmerhpc.preview import Preview, number_text

RUN = {"spin": "prograde", "inclination_deg": 0, "first_id": 7}

# The query of GalMer's own page (Chilingarian et al. 2010), for its default view.
QUERY = (
    "nbins=400&snap_id=27436&phi=30&theta=45&bins=0.16666666666666666"
    "&bri=4&xc=0&yc=0&gas=1&stars=1&halo=0&quantity=0"
)


def angles(low: int, high: int) -> st.SearchStrategy[Angles]:
    return st.builds(
        lambda start, count, step: Angles(start=start, stop=start + count * step, step=step),
        st.integers(low, (low + high) // 2),
        st.integers(0, 3),
        st.sampled_from([0.5, 1.0, 7.25]),
    )


GRIDS = st.builds(ViewGrid, theta_deg=angles(0, 90), phi_deg=angles(0, 100))


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    ids = iter(draw(st.lists(st.integers(0, 10**6), min_size=12, max_size=12, unique=True)))
    runs = [
        Run(
            spin=draw(st.sampled_from(["prograde", "retrograde"])),
            inclination_deg=draw(st.sampled_from([0, 45, 75, 90])),
            simulation=draw(st.integers(0, 3)),
            snapshots=tuple(
                Snapshot(id=next(ids), time_myr=50.0 * k) for k in range(draw(st.integers(1, 3)))
            ),
            views=draw(st.none() | GRIDS),
        )
        for _ in range(draw(st.integers(1, 4)))
    ]
    return Catalogue(runs=tuple(runs), views=draw(GRIDS), render=Render(nbins=32))


@given(catalogues())
def test_views_come_run_by_run_with_phi_innermost(catalogue: Catalogue) -> None:
    wanted = []
    for run in catalogue.runs:
        grid = run.views or catalogue.views
        wanted += [
            (run, snapshot, theta, phi)
            for snapshot, theta, phi in itertools.product(
                run.all_snapshots(), grid.theta_deg.values(), grid.phi_deg.values()
            )
        ]
    views = Views(catalogue)
    assert len(views) == len(wanted)
    assert [(v.run, v.snapshot, v.theta, v.phi) for v in views] == wanted


@given(catalogues(), st.data())
def test_views_are_taken_by_place_as_from_a_list(catalogue: Catalogue, data: st.DataObject) -> None:
    views = Views(catalogue)
    everything = list(views)
    place = data.draw(st.integers(-len(views), len(views) - 1))
    part = data.draw(st.slices(len(views)))
    assert views[place] == everything[place]
    assert views[part] == everything[part]
    for beyond in (len(views), -len(views) - 1):
        with pytest.raises(IndexError):
            views[beyond]


@given(catalogues(), st.randoms())
def test_ids_are_unique_and_do_not_depend_on_the_place(catalogue: Catalogue, draw: object) -> None:
    runs = list(catalogue.runs)
    draw.shuffle(runs)
    ids = [view.id for view in Views(catalogue)]
    assert len(set(ids)) == len(ids)
    shuffled = Views(catalogue.model_copy(update={"runs": tuple(runs)}))
    assert {view.id for view in shuffled} == set(ids)


@given(catalogues())
def test_columns_and_ids_of_all_views_are_those_of_each(catalogue: Catalogue) -> None:
    views = Views(catalogue)
    assert list(views.ids()) == [view.id for view in views]
    for name in NAMES:
        assert views.column(name).tolist() == [view.labels[name] for view in views]
    table = ViewTable.of(views)
    assert table.simulation.tolist() == [view.run.simulation for view in views]
    assert table.theta.tolist() == [view.theta for view in views]
    assert table.phi.tolist() == [view.phi for view in views]


@given(theta=angles(-90, 180), phi=angles(-180, 180), spread=st.sampled_from([1, 7, 45, 90]))
def test_two_views_of_one_picture_are_found_as_by_looking_at_all(
    theta: Angles, phi: Angles, spread: float
) -> None:
    theta, phi = (
        axis.model_copy(update={"step": spread * axis.step, "stop": min(axis.stop * spread, 180)})
        for axis in (theta, phi)
    )
    seen = set()
    for t, p in itertools.product(theta.values().tolist(), phi.values().tolist()):
        seen.add((round(abs(t), 6), round(p + 180 * (t < 0), 6) % 360))
    count = len(theta.values()) * len(phi.values())
    grid = {"theta_deg": theta.model_dump(), "phi_deg": phi.model_dump()}
    run = {"spin": "prograde", "inclination_deg": 0, "first_id": 1}
    try:
        Catalogue.model_validate({"views": grid, "runs": [run]})
        accepted = True
    except ValidationError as error:
        assume("shows what another" in str(error))
        accepted = False
    assert accepted == (len(seen) == count)


def test_a_catalogue_of_billions_of_views_is_read_and_shown_by_its_ends() -> None:
    grid = {
        "theta_deg": Angles(start=0, stop=90, step=0.01),
        "phi_deg": Angles(start=0, stop=180, step=0.01),
    }
    runs = tuple(
        Run(spin="prograde", inclination_deg=0, first_id=100 * k, count=71) for k in range(100)
    )
    catalogue = Catalogue(runs=runs, views=ViewGrid(**grid))
    views = Views(catalogue)
    assert len(views) == 100 * 71 * 9001 * 18001
    assert f"{len(views):,} views" in describe(catalogue)
    assert (views[-1].snapshot.id, views[-1].theta, views[-1].phi) == (9970, 90, 180)
    with pytest.raises(InputError, match=r"1,150,391,707,100 views, more than .*larger steps"):
        views_to_make(catalogue)


@given(pieces=st.integers(1, 400))
def test_a_step_written_with_few_digits_reaches_its_end_and_not_beyond(pieces: int) -> None:
    for step in (round(180 / pieces, 6), float(f"{180 / pieces:.15g}")):
        phi = Angles(start=0, stop=180, step=step)
        values = phi.values()
        assert [phi.at(k) for k in range(phi.count)] == values.tolist()
        assert (np.diff(values) > 0).all()
        assert values[-1] <= 180


@given(step=st.sampled_from([0.1, 0.3, 0.7, 1.1, 2.5]), first=st.integers(0, 36))
def test_a_direction_has_one_name_wherever_its_grid_begins(step: float, first: int) -> None:
    whole = Angles(start=0, stop=90, step=step)
    later = Angles(start=round(first * step, 9), stop=90, step=step)
    names = {number_text(angle) for angle in whole.values().tolist()}
    assert {number_text(angle) for angle in later.values().tolist()} <= names


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"runs": [{**RUN, "count": 10**9}]}, "less than or equal to 200000"),
        ({"runs": [{**RUN, "first_id": 2**31 - 2, "count": 3}]}, "must stay below 2"),
        ({"runs": [{**RUN, "count": 3}, {**RUN, "first_id": 9}]}, "snapshot 9 is listed more"),
        (
            {"runs": [{**RUN, "first_id": 10**6 * k, "count": 150_000} for k in range(2)]},
            "300000 snapshots, more than",
        ),
        ({"runs": [RUN], "views": {"theta_deg": {"start": 0, "stop": 9, "step": 1e-9}}}, "0.001"),
        ({"runs": [RUN], "views": {"theta_deg": {"start": 0, "stop": 181, "step": 1}}}, "-90..180"),
        ({"runs": [RUN], "render": {"zoom": 1e6}}, "render.zoom"),
    ],
)
def test_what_no_service_could_answer_is_refused(values: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Catalogue.model_validate(values)
    assert expected in str(caught.value)


RENDERS = st.builds(
    Render,
    zoom=st.floats(1e-3, 1e3),
    brightness=st.floats(-100, 100),
    xc_kpc=st.floats(-1e4, 1e4),
    quantity=st.integers(0, 100),
    nbins=st.integers(16, 2048),
)


@given(RENDERS, st.floats(-90, 180), st.floats(-180, 180), st.integers(0, 2**31 - 1))
def test_whatever_a_catalogue_may_hold_the_service_reads(
    render: Render, theta: float, phi: float, number: int
) -> None:
    wanted = preview(render, number, theta, phi)
    assert Preview.parse(wanted.query()) == wanted


def test_a_description_names_runs_labels_and_counts() -> None:
    views = ViewGrid(
        theta_deg=Angles(start=0, stop=90, step=30), phi_deg=Angles(start=0, stop=180, step=15)
    )
    runs = (
        Run(spin="prograde", inclination_deg=45, first_id=7, count=20, labels={"mass_ratio": 2}),
        Run(spin="retrograde", inclination_deg=90, first_id=99, labels={"mass_ratio": 3}),
    )
    text = describe(Catalogue(runs=runs, views=views))
    first, second = (line.split() for line in text.splitlines()[1:3])
    assert first[2:5] == ["prograde", "45", "0"]
    assert first[-1] == "1,040"
    assert "26 at 950 (20 in all)" in text
    assert second[5:] == ["99", "at", "0", "52"]
    assert "theta 0 to 90 in steps of 30, phi 0 to 180 in steps of 15" in text
    assert "azimuth         0 to 180 (13 values)" in text
    assert "mass_ratio      2, 3" in text
    assert text.endswith("1,092 views, as many requests")


@given(catalogues())
def test_a_query_is_read_back_as_the_same_view(catalogue: Catalogue) -> None:
    for view in Views(catalogue):
        assert Preview.parse(view.preview.query()) == view.preview
        assert view.id == f"simulation={view.run.simulation}&{view.preview.query()}"


def test_a_view_asks_as_the_page_of_the_service_does() -> None:
    grid = ViewGrid(
        theta_deg=Angles(start=45, stop=45, step=1), phi_deg=Angles(start=30, stop=30, step=1)
    )
    run = Run(spin="retrograde", inclination_deg=90, first_id=27436, labels={"mass_ratio": 2})
    (view,) = Views(Catalogue(runs=(run,), views=grid))
    assert view.preview.query() == QUERY
    assert view.labels == {
        "spin": 1, "inclination": 90, "azimuth": 30, "viewing_angle": 45, "mass_ratio": 2,
    }  # fmt: skip


def test_the_default_grid_is_the_papers_quarter_sphere() -> None:
    runs = tuple(
        Run(spin=spin, inclination_deg=i, first_id=100 * n)
        for n, (spin, i) in enumerate(
            itertools.product(["prograde", "retrograde"], [0, 45, 75, 90])
        )
    )
    assert (
        len(Views(Catalogue(runs=runs))) == 263_536 // 2
    )  # the paper's, with two variants of each


def test_consecutive_snapshots_count_on_in_id_and_time() -> None:
    run = Run(
        spin="prograde", inclination_deg=0, first_id=7, count=3, first_time_myr=-50, step_myr=25
    )
    views = Views(Catalogue(runs=(run,)))
    snapshots = [views[k * 91 * 181].snapshot for k in range(3)]
    assert [(s.id, s.time_myr) for s in snapshots] == [(7, -50), (8, -25), (9, 0)]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        (QUERY.replace("phi=30&", ""), "'phi' is missing"),
        (QUERY + "&phi=3", "given twice"),
        (QUERY + "&colour=1", "unknown parameter 'colour'"),
        (QUERY.replace("phi=30", "phi=x"), "'phi' is not a number"),
        (QUERY.replace("phi=30", "phi=nan"), "'phi' is nan, outside"),
        (QUERY.replace("nbins=400", "nbins=1000000"), "'nbins' is 1000000, outside"),
        (QUERY.replace("snap_id=27436", "snap_id=1.5"), "'snap_id' is not a number"),
        (QUERY.replace("gas=1", "gas="), "'gas' is not a number"),
        ("", "is missing"),
    ],
)
def test_a_wrong_query_is_told_what_is_wrong(query: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Preview.parse(query)


@given(st.text(max_size=60))
def test_any_query_is_read_or_refused(query: str) -> None:
    with pytest.raises(ValueError):
        Preview.parse(query)


def test_ids_and_table_are_those_of_the_views() -> None:
    grid = {"theta_deg": {"start": 0, "stop": 90, "step": 22.5}}
    grid["phi_deg"] = {"start": -30, "stop": 60, "step": 7.1}
    runs = [
        {"spin": "prograde", "inclination_deg": 75, "simulation": 2, "first_id": 7, "count": 2},
        {"spin": "retrograde", "inclination_deg": 0, "first_id": 30, "views": grid},
    ]
    coarse = {"theta_deg": {"start": 0, "stop": 90, "step": 45}}
    views = Views(Catalogue.model_validate({"runs": runs, "views": coarse}))
    assert list(views.ids()) == [view.id for view in views]
    table = ViewTable.of(views)
    assert table.simulation.tolist() == [view.run.simulation for view in views]
    assert table.inclination.tolist() == [view.run.inclination_deg for view in views]
    assert table.theta.tolist() == [view.theta for view in views]
    assert table.phi.tolist() == [view.phi for view in views]
