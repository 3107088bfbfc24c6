"""Which versions are loaded: with folders that are real, and models that are
not."""

import dataclasses
import shutil
import threading

import pytest

from keras_muffnet.model_server import manager as manager_module
from keras_muffnet.model_server.configuration import ModelConfig
from keras_muffnet.model_server.configuration import VersionPolicy
from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.manager import ModelManager
from keras_muffnet.model_server.manager import State
from keras_muffnet.model_server.options import LoadOptions
from keras_muffnet.model_server.servable import Servable


class Loader:
    """Loads anything but what it is told to fail, and remembers."""

    def __init__(self):
        self.loaded = []
        self.closed = []
        self.failing = set()

    def __call__(self, path, name, version):
        if (name, version) in self.failing:
            raise ValueError(f"no model in {path}")
        self.loaded.append((name, version))
        return Servable(
            name, version, {}, {}, lambda: self.closed.append((name, version))
        )


@pytest.fixture
def loader():
    return Loader()


@pytest.fixture
def base(tmp_path):
    add(tmp_path / "m", 1, 2)
    return tmp_path / "m"


@pytest.fixture
def config(base):
    return ModelConfig("m", base)


@pytest.fixture
def manager(loader):
    return ModelManager(loader)


def add(base, *versions):
    for version in versions:
        (base / str(version)).mkdir(parents=True)


def states(manager, name="m"):
    return {s.version: s.state for s in manager.statuses(name)}


def latest(manager, name="m"):
    with manager.lease(name) as servable:
        return servable.version


def wait_for_end(manager, version, name="m"):
    """Unloading happens in a thread of its own."""
    for _ in range(6000):
        if states(manager, name)[version] == State.END:
            return
        threading.Event().wait(0.01)
    pytest.fail(f"version {version} was not unloaded: {states(manager, name)}")


@pytest.mark.parametrize(
    ("policy", "loaded"),
    [
        (VersionPolicy(latest=1), [3]),
        (VersionPolicy(latest=2), [3, 2]),
        (VersionPolicy(), [3, 2, 1]),
        (VersionPolicy(specific=frozenset({1, 2, 7})), [2, 1]),
    ],
)
def test_policies(manager, loader, config, base, policy, loaded):
    add(base, "00000003")
    (base / "x4").mkdir()
    (base / "5").touch()
    (base / ("9" * 30)).mkdir()
    manager.configure([dataclasses.replace(config, policy=policy)])
    assert manager.available() == {"m": loaded}
    assert loader.loaded == [("m", version) for version in loaded]
    assert latest(manager) == loaded[0]


def test_a_lease_is_of_the_version_asked_for(manager, config):
    labels = {"stable": 1}
    manager.configure(
        [dataclasses.replace(config, policy=VersionPolicy(), labels=labels)]
    )
    with manager.lease("m", 1) as servable:
        assert servable.version == 1
    with manager.lease("m", label="stable") as servable:
        assert servable.version == 1
    for arguments, code, text in (
        (("m", 3), Code.NOT_FOUND, r"request: Specific\(m, 3\)"),
        (("n",), Code.NOT_FOUND, r"Servable not found .*: Latest\(n\)"),
        (
            ("m", None, "new"),
            Code.INVALID_ARGUMENT,
            "Unrecognized servable version label: new",
        ),
        (
            ("n", None, "stable"),
            Code.INVALID_ARGUMENT,
            "Unrecognized servable version label: stable",
        ),
    ):
        with pytest.raises(ServingError, match=text) as error:
            manager.lease(*arguments).__enter__()
        assert error.value.code == code


def test_a_new_version_is_loaded_before_the_old_one_is_unloaded(
    manager, loader, config, base
):
    manager.configure([config])
    add(base, 3)
    seen = []
    load = loader.__call__

    def spy(path, name, version):
        seen.append((latest(manager), states(manager)[version]))
        return load(path, name, version)

    manager._load = spy
    manager.poll()
    assert seen == [(2, State.LOADING)]
    assert latest(manager) == 3
    wait_for_end(manager, 2)
    assert loader.closed == [("m", 2)]
    assert states(manager) == {3: State.AVAILABLE, 2: State.END}


def test_what_is_used_is_not_closed(manager, loader, config, base):
    manager.configure([config])
    with manager.lease("m") as servable:
        add(base, 3)
        manager.poll()
        assert servable.version == 2
        assert states(manager)[2] == State.UNLOADING
        assert latest(manager) == 3
        assert loader.closed == []
        with pytest.raises(ServingError, match="Specific"):
            manager.lease("m", 2).__enter__()
    wait_for_end(manager, 2)
    assert loader.closed == [("m", 2)]


def test_vanished_versions(manager, loader, config, base):
    manager.configure([config])
    shutil.rmtree(base / "2")
    manager.poll()
    assert latest(manager) == 1
    shutil.rmtree(base / "1")
    manager.poll()
    with pytest.raises(ServingError, match=r"Latest\(m\)"):
        latest(manager)
    wait_for_end(manager, 1)
    wait_for_end(manager, 2)
    # And back again.
    add(base, 2)
    manager.poll()
    assert latest(manager) == 2
    assert loader.loaded == [("m", 2), ("m", 1), ("m", 2)]


def test_a_base_path_that_is_away_takes_nothing_with_it(manager, config, base):
    manager.configure([config])
    shutil.rmtree(base)
    manager.poll()
    assert latest(manager) == 2


def test_a_version_that_does_not_load_disturbs_none(
    manager, loader, config, base, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr(manager_module.time, "monotonic", lambda: now[0])
    now[0] = 1000.0
    manager.configure([config])
    loader.failing.add(("m", 3))
    add(base, 3)
    for _ in range(LoadOptions.retries):
        manager.poll()
        manager.poll()  # too early for another attempt
        (failed,) = manager.statuses("m", 3)
        assert failed.state == State.LOADING
        assert "no model in" in str(failed.error)
        now[0] += LoadOptions.retry_seconds
    manager.poll()
    (failed,) = manager.statuses("m", 3)
    assert failed.state == State.END
    assert failed.error.code == Code.UNKNOWN
    # It has had its attempts.
    loader.failing.clear()
    now[0] += 10 * LoadOptions.retry_seconds
    manager.poll()
    assert latest(manager) == 2
    # Taken away and put there again, it has others.
    shutil.rmtree(base / "3")
    manager.poll()
    add(base, 3)
    manager.poll()
    assert latest(manager) == 3
    assert manager.statuses("m", 3)[0].error is None


def test_a_version_that_loads_at_the_second_attempt(loader, config, base):
    manager = ModelManager(loader, retry_seconds=0)
    manager.configure([config])
    loader.failing.add(("m", 3))
    add(base, 3)
    manager.poll()
    assert latest(manager) == 2
    loader.failing.clear()
    manager.poll()
    assert latest(manager) == 3


def test_labels_that_come_before_their_version(manager, config, base):
    manager.configure([config])
    policy = VersionPolicy(latest=2)
    labelled = dataclasses.replace(config, policy=policy, labels={"new": 3})
    with pytest.raises(ServingError, match="not currently available"):
        manager.configure([labelled])
    add(base, 3)
    manager.poll()
    with manager.lease("m", label="new") as servable:
        assert servable.version == 3


def test_retries_may_be_none(loader, config, base):
    manager = ModelManager(loader, retries=0)
    manager.configure([config])
    loader.failing.add(("m", 3))
    add(base, 3)
    manager.poll()
    assert manager.statuses("m", 3)[0].state == State.END


def test_statuses_that_are_not_there(manager, config):
    manager.configure([config])
    for arguments, text in (
        (("n",), "Could not find any versions of model n"),
        (("m", 3), "Could not find version 3 of model m"),
        # Never wanted.
        (("m", 1), "Could not find version 1 of model m"),
    ):
        with pytest.raises(ServingError, match=text) as error:
            manager.statuses(*arguments)
        assert error.value.code == Code.NOT_FOUND


@pytest.mark.parametrize(
    ("folder", "text"),
    [("m/1", "none that its version policy"), ("none", "no such folder")],
)
def test_a_new_model_without_versions(manager, tmp_path, base, folder, text):
    with pytest.raises(ServingError, match=f"model n.*Received: {text}"):
        manager.configure([ModelConfig("n", tmp_path / folder)])


def test_a_new_model_that_does_not_load(manager, loader, config):
    loader.failing.add(("m", 2))
    with pytest.raises(ServingError, match="no model in"):
        manager.configure([config])


def test_a_configuration_is_replaced_whole(manager, loader, config, tmp_path):
    manager.configure([config])
    add(tmp_path / "n", 7)
    other = ModelConfig("n", tmp_path / "n")
    manager.configure([other])
    assert manager.available() == {"n": [7]}
    with pytest.raises(ServingError, match=r"Latest\(m\)"):
        latest(manager)
    wait_for_end(manager, 2)
    assert loader.closed == [("m", 2)]
    manager.configure([other, config])
    assert latest(manager) == 2
    assert loader.loaded == [("m", 2), ("n", 7), ("m", 2)]


def test_a_model_that_moves_to_another_folder(
    manager, loader, config, tmp_path
):
    manager.configure([config])
    add(tmp_path / "elsewhere", 2)
    moved = dataclasses.replace(config, base_path=tmp_path / "elsewhere")
    loader.failing.add(("m", 2))
    manager.configure([moved])
    assert latest(manager) == 2
    assert loader.closed == []
    loader.failing.clear()
    manager.configure([config])
    assert loader.loaded == [("m", 2)]
    add(tmp_path / "third", 2)
    manager.configure(
        [dataclasses.replace(config, base_path=tmp_path / "third")]
    )
    assert loader.loaded == [("m", 2), ("m", 2)]
    assert manager.available() == {"m": [2]}


def test_labels(manager, config):
    both = dataclasses.replace(config, policy=VersionPolicy())

    def label(**labels):
        manager.configure([dataclasses.replace(both, labels=labels)])

    def labelled(label):
        with manager.lease("m", label=label) as servable:
            return servable.version

    label(stable=1, canary=2)
    assert (labelled("stable"), labelled("canary")) == (1, 2)
    label(stable=2)
    assert labelled("stable") == 2
    with pytest.raises(ServingError, match="Unrecognized"):
        labelled("canary")
    for labels in ({"stable": 3}, {"stable": 1, "new": 3}):
        with pytest.raises(
            ServingError, match="not currently available for inference"
        ) as error:
            label(**labels)
        assert error.value.code == Code.FAILED_PRECONDITION
        assert labelled("stable") == 2


def test_a_label_moves_before_its_version_is_unloaded(loader, config, base):
    seen = []

    def load(path, name, version):
        if name == "late":
            with manager.lease("m", label="stable") as servable:
                seen.append(servable.version)
        return loader(path, name, version)

    manager = ModelManager(load)
    both = dataclasses.replace(
        config, policy=VersionPolicy(), labels={"stable": 1}
    )
    manager.configure([both])
    moved = dataclasses.replace(config, labels={"stable": 2})
    add(base.parent / "late", 1)
    (base.parent / "empty").mkdir()
    late = ModelConfig("late", base.parent / "late")
    empty = ModelConfig("empty", base.parent / "empty")
    # One model that has no version keeps no other from its labels.
    with pytest.raises(ServingError, match="none that its version policy"):
        manager.configure([empty, moved, late])
    assert seen == [2]
    with pytest.raises(ServingError, match="label stable to version 1"):
        manager.configure([dataclasses.replace(moved, labels={"stable": 1})])
    with manager.lease("m", label="stable") as servable:
        assert servable.version == 2


def test_labels_of_versions_that_are_not_loaded(loader, config, base):
    manager = ModelManager(loader, allow_labels_for_unavailable=True)
    new = dataclasses.replace(config, labels={"new": 3})
    manager.configure([new])
    with pytest.raises(ServingError, match=r"Specific\(m, 3\)"):
        manager.lease("m", label="new").__enter__()
    add(base, 3)
    manager.poll()
    with manager.lease("m", label="new") as servable:
        assert servable.version == 3
    # A label in use may not.
    with pytest.raises(ServingError, match="not currently available"):
        manager.configure([dataclasses.replace(config, labels={"new": 4})])


def test_closing_frees_everything(manager, loader, config, tmp_path):
    add(tmp_path / "n", 1)
    manager.configure([config, ModelConfig("n", tmp_path / "n")])
    with manager.lease("m"):
        manager.close()
    assert sorted(loader.closed) == [("m", 2), ("n", 1)]
    assert manager.available() == {}
