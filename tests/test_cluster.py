"""Cropping on clusters of several worker processes: the same bytes as on one core, whatever happens."""

import os
from collections.abc import Iterator
from pathlib import Path

import clusters
import numpy as np
import pytest
from clusters import Store
from faults import fault
from imagefiles import rows_of, tiles

from colorize.data import cluster, crops
from colorize.data.crops import crop_shards
from colorize.data.images import CropConfig, Record
from colorize.data.shards import Crops
from colorize.files import InputError

pytestmark = pytest.mark.xdist_group("dask")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a running cluster of several worker processes."""
    with clusters.dask() as (address, _):
        yield address


def crop_all(folder: Path, store: Store, address: str = "") -> list[Record]:
    with cluster.connected(address) as run:
        shards = crop_shards(rows_of(store.contents), store.read, folder, CropConfig(size=16, workers=1), run)
        return [record for shard in shards for record in shard]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_a_cluster_writes_the_same_bytes(tmp_path: Path, address: str) -> None:
    """Several processes, none of them this one: shards and records are those of one core of this machine."""
    expected = crop_all(tmp_path / "one", Store(tiles(), tmp_path / "notes"))
    assert crop_all(tmp_path / "many", Store(tiles(), tmp_path / "others"), address) == expected
    assert snapshot(tmp_path / "many") == snapshot(tmp_path / "one")
    asked = {path.name for path in (tmp_path / "others").iterdir()}
    assert len(asked) > 1 and f"asked-{os.getpid()}" not in asked


@pytest.mark.slow
@fault(48, "a worker of a Dask cluster that is killed")
def test_a_killed_worker_changes_nothing(tmp_path: Path, address: str) -> None:
    """The cluster gives its shard to another one; crops and records are those of a run without it."""
    expected = crop_all(tmp_path / "one", Store(tiles(), tmp_path / "notes"))
    store = Store(tiles(), tmp_path / "others", deadly="80")
    assert crop_all(tmp_path / "many", store, address) == expected
    assert snapshot(tmp_path / "many") == snapshot(tmp_path / "one")
    assert store.dead() == 1


@pytest.mark.slow
@fault(48, "a photograph that kills every worker of a cluster that decodes it")
def test_a_photograph_that_kills_workers_costs_only_itself(tmp_path: Path, address: str) -> None:
    """Once the cluster has given its shard up, this machine takes it apart: `failed`, `crash`, no other."""
    whole = crop_all(tmp_path / "whole", Store(tiles(), tmp_path / "notes"))
    records = crop_all(
        tmp_path / "crops", Store(tiles(), tmp_path / "others", deadly="80", deaths=99), address
    )
    assert [(r.photo, r.status, r.reason) for r in records if r.status != "ok"] == [("80", "failed", "crash")]
    survivors = np.array([record.photo != "80" for record in whole])
    assert np.array_equal(Crops(tmp_path / "crops")[:], Crops(tmp_path / "whole")[survivors])


@pytest.mark.slow
def test_what_a_worker_cannot_do_is_one_sentence(tmp_path: Path, address: str) -> None:
    """Its reason arrives here as it was: the folder cannot be written to."""
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"^cannot write .*crops-\d+.npy: Not a directory; make the folder writable"
    ):
        crop_all(tmp_path / "file/crops", Store(tiles(), tmp_path / "notes"), address)


@pytest.mark.slow
@fault(48, "a worker of a cluster that hangs in a photograph")
def test_a_worker_of_a_cluster_that_hangs_is_noticed(tmp_path, address, monkeypatch) -> None:
    """After half an hour without the next shard the run ends and names it; the worker goes on hanging."""
    monkeypatch.setattr(crops, "HANG_SECONDS", 3)
    store = Store(tiles(), tmp_path / "notes", endless="80")
    with pytest.raises(
        InputError, match=r"one of the photographs \d+ to \d+ keeps a worker busy for over 3 seconds"
    ):
        crop_all(tmp_path / "crops", store, address)


@pytest.mark.slow
@fault(48, "a scheduler that is killed")
def test_a_scheduler_that_goes_away_is_one_sentence(tmp_path: Path) -> None:
    """One sentence that names its address and says what to start."""
    with (
        clusters.dask() as (address, process),
        pytest.raises(InputError, match=rf"{address} went away; start it"),
        cluster.connected(address) as run,
    ):
        store = Store(tiles(), tmp_path / "notes", endless="80")
        shards = crop_shards(rows_of(tiles()), store.read, tmp_path / "crops", CropConfig(size=16), run)
        next(shards)
        process.kill()
        list(shards)


@pytest.mark.parametrize(("place", "reason"), [("127.0.0.1:{}", "refused"), ("host:99999", "0-65535")])
def test_a_scheduler_that_does_not_answer_is_named(place: str, reason: str) -> None:
    """Nobody listens there."""
    place = place.format(clusters.free_port())
    words = rf"crop.cluster: Dask's scheduler at tcp://{place} cannot be used .*{reason}"
    with pytest.raises(InputError, match=words):
        cluster.connected(f"tcp://{place}").__enter__()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "threads", "words"),
    [
        (1, 2, "several threads; start all with --nthreads 1"),
        (0, 1, "Only 0/1 workers arrived.*start it and its"),
    ],
)
def test_a_cluster_without_fit_workers_is_refused(monkeypatch, workers, threads, words) -> None:
    """Decoding is not safe beside itself in one process. Workers may come late, but not for ever."""
    if not workers:
        monkeypatch.setattr(cluster, "CONNECT_SECONDS", 3)
    with clusters.dask(workers, threads) as (address, _), pytest.raises(InputError, match=words):
        cluster.connected(address).__enter__()


def test_what_is_not_installed_or_given_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence holds the command that installs it, or an address as it should be."""
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"crop.cluster: Dask is not installed; pip install -e '.\[dask\]'"):
        cluster.check("tcp://host:8786")
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    for address in ("host:8786", "http://host:8786", "tcp://host", "tcp://:8786 "):
        with pytest.raises(InputError, match="crop.cluster: give the address .*, say tcp://host:8786"):
            cluster.check(address)
    cluster.check("tcp://host:8786")
    cluster.check("")
