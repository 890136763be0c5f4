"""The catalogue: which views there are, in which order, and what they are called."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galmerhpc.catalogue import Views
from galmerhpc.config import Angles, Catalogue, Render, Run, Snapshot, ViewGrid
from galmerhpc.preview import Preview

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
    table = views.table()
    assert table["simulation"].tolist() == [view.run.simulation for view in views]
    assert table["inclination"].tolist() == [view.run.inclination_deg for view in views]
    assert table["theta"].tolist() == [view.theta for view in views]
    assert table["phi"].tolist() == [view.phi for view in views]
