"""Cropping on real clusters of several worker processes: the same bytes as on one core, whatever happens to the workers."""

import os
from collections.abc import Iterator
from pathlib import Path

import clusters
import numpy as np
import pytest
from clusters import Store
from faults import fault
from test_images import rows_of, tiles

from colorize import compute, images
from colorize.files import InputError
from colorize.images import Crops, Record, crop_shards
from colorize.settings import Compute, CropRule


def one_worker(package: str) -> object:
    """Marks the tests of a backend: one process runs them all, so that its cluster starts once."""
    return pytest.param(package, marks=pytest.mark.xdist_group(package))


@pytest.fixture(scope="module", params=[one_worker("distributed"), one_worker("ray")])
def cluster(request: pytest.FixtureRequest) -> Iterator[Compute]:
    """How a running cluster of several worker processes is used."""
    pytest.importorskip(request.param)
    with {"distributed": clusters.dask, "ray": clusters.ray}[request.param]() as (setting, _):
        yield setting


def crop_all(folder: Path, store: Store, setting: Compute | None = None) -> list[Record]:
    with compute.connected(setting or Compute()) as backend:
        shards = crop_shards(rows_of(store.contents), store.read, folder, CropRule(size=16, workers=1), backend)
        return [record for shard in shards for record in shard]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_cluster_writes_the_same_bytes(tmp_path: Path, cluster: Compute) -> None:
    """Several processes, none of them this one: shards and records are those of one core of this machine."""
    expected = crop_all(tmp_path / "one", Store(tiles(), tmp_path / "notes"))
    assert crop_all(tmp_path / "many", Store(tiles(), tmp_path / "others"), cluster) == expected
    assert snapshot(tmp_path / "many") == snapshot(tmp_path / "one")
    asked = {path.name for path in (tmp_path / "others").iterdir()}
    assert len(asked) > 1 and f"asked-{os.getpid()}" not in asked


@fault(48, "a worker of a Dask or Ray cluster that is killed")
def test_a_killed_worker_changes_nothing(tmp_path: Path, cluster: Compute) -> None:
    """The cluster gives its shard to another one; crops and records are those of a run without it."""
    expected = crop_all(tmp_path / "one", Store(tiles(), tmp_path / "notes"))
    store = Store(tiles(), tmp_path / "others", deadly="80")
    assert crop_all(tmp_path / "many", store, cluster) == expected
    assert snapshot(tmp_path / "many") == snapshot(tmp_path / "one")
    assert store.dead() == 1


@fault(48, "a photograph that kills every worker of a cluster that decodes it")
def test_a_photograph_that_kills_workers_costs_only_itself(tmp_path: Path, cluster: Compute) -> None:
    """Once the cluster has given its shard up, this machine takes it apart: `failed`, `crash`; it costs only itself."""
    whole = crop_all(tmp_path / "whole", Store(tiles(), tmp_path / "notes"))
    records = crop_all(tmp_path / "crops", Store(tiles(), tmp_path / "others", deadly="80", deaths=99), cluster)
    assert [(r.photo, r.status, r.reason) for r in records if r.status != "ok"] == [("80", "failed", "crash")]
    survivors = np.array([record.photo != "80" for record in whole])
    assert np.array_equal(Crops(tmp_path / "crops")[:], Crops(tmp_path / "whole")[survivors])


def test_what_a_worker_cannot_do_is_one_sentence(tmp_path: Path, cluster: Compute) -> None:
    """Its reason arrives here as it was: the folder cannot be written to."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^cannot write .*crops-\d+.npy: Not a directory; make the folder writable"):
        crop_all(tmp_path / "file/crops", Store(tiles(), tmp_path / "notes"), cluster)


@fault(48, "a worker of a cluster that hangs in a photograph")
def test_a_worker_of_a_cluster_that_hangs_is_noticed(
    tmp_path: Path, cluster: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After half an hour without the next shard the run ends and names it; a worker of Dask's goes on hanging."""
    monkeypatch.setattr(images, "HANG_SECONDS", 3)
    store = Store(tiles(), tmp_path / "notes", endless="80")
    with pytest.raises(InputError, match=r"one of the photographs \d+ to \d+ keeps a worker busy for over 3 seconds"):
        crop_all(tmp_path / "crops", store, cluster)


@fault(48, "a scheduler that is killed")
@pytest.mark.parametrize("start", ["distributed", "ray"])
def test_a_scheduler_that_goes_away_is_one_sentence(tmp_path: Path, start: str) -> None:
    """One sentence that names its address and says what to start."""
    pytest.importorskip(start)
    cluster = {"distributed": clusters.dask, "ray": clusters.ray}[start]
    with (
        cluster() as (setting, process),
        pytest.raises(InputError, match=rf"{setting.address} went away; start it"),
        compute.connected(setting) as backend,
    ):
        store = Store(tiles(), tmp_path / "notes", endless="80")
        shards = crop_shards(rows_of(tiles()), store.read, tmp_path / "crops", CropRule(size=16), backend)
        next(shards)
        process.kill()
        list(shards)


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_scheduler_that_does_not_answer_is_named(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there: told at once, and what to do."""
    monkeypatch.setattr(compute, "find_spec", lambda name: name)
    scheme = {"dask": "tcp", "ray": "ray"}[backend]
    for place, reason in ((f"{clusters.HOST}:{clusters.free_port()}", "refused"), ("host:99999", "0-65535")):
        address = f"{scheme}://{place}"
        with pytest.raises(
            InputError, match=rf"compute.address: {backend}'s scheduler at {address} cannot be used .*{reason}"
        ):
            compute.connected(Compute(backend, address)).__enter__()


def test_a_scheduler_without_workers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told after a while, in which one may still come."""
    pytest.importorskip("distributed")
    monkeypatch.setattr(compute, "CONNECT_SECONDS", 3)
    with (
        clusters.dask(workers=0) as (setting, _),
        pytest.raises(InputError, match="Only 0/1 workers arrived.*start it and its"),
    ):
        compute.connected(setting).__enter__()


def test_workers_of_several_threads_are_refused() -> None:
    """Decoding is not safe beside itself in one process: the sentence says how to start them."""
    pytest.importorskip("distributed")
    with (
        clusters.dask(threads=2) as (setting, _),
        pytest.raises(InputError, match="several threads, start all with --nthreads 1"),
    ):
        compute.connected(setting).__enter__()


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_what_is_not_installed_or_given_is_named(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence holds the command that installs it, or an address as it should be."""
    monkeypatch.setattr(compute, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"compute.backend: {backend} is not installed; pip install -e '.\[{backend}\]'"):
        compute.check(Compute(backend, "tcp://host:8786"))
    monkeypatch.setattr(compute, "find_spec", lambda name: name)
    for address in ("", "host:8786", "http://host:8786", "ray://host", "tcp://:8786 "):
        with pytest.raises(
            InputError, match=rf"compute.address: {backend} needs the address of its scheduler, say \w+://host"
        ):
            compute.check(Compute(backend, address))
    compute.check(Compute(backend, compute.EXAMPLES[backend]))
    compute.check(Compute())
