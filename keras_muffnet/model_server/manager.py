"""Which versions of which models are loaded, and hands them out."""

import contextlib
import dataclasses
import enum
import gc
import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path

from keras_muffnet.model_server.configuration import ModelConfig
from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.errors import invalid_argument
from keras_muffnet.model_server.metrics import Metrics
from keras_muffnet.model_server.options import LoadOptions
from keras_muffnet.model_server.servable import Servable

logger = logging.getLogger(__name__)

_MAX_INT64 = 2**63 - 1


class State(enum.IntEnum):
    """A version's state, numbered as in TensorFlow Serving's status."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass
class VersionStatus:
    """What is reported of a version.

    Attributes:
        version: The version's number.
        state: Its state.
        error: Why it could not be loaded, or None.
    """

    version: int
    state: State = State.START
    error: ServingError | None = None


@dataclasses.dataclass
class _Version:
    """A version, from when it is wanted until it is no more."""

    status: VersionStatus
    path: Path
    servable: Servable | None = None
    users: int = 0
    failures: int = 0
    retry_at: float = 0.0

    @property
    def is_available(self) -> bool:
        return self.status.state == State.AVAILABLE

    @property
    def has_ended(self) -> bool:
        """Whether it was unloaded; not, whether it failed to load."""
        return self.status.state >= State.UNLOADING and not self.failures

    def forget_failures(self) -> None:
        self.failures = 0
        self.retry_at = 0.0

    def count_failure(self, error: Exception, retry_seconds: float) -> None:
        self.failures += 1
        self.retry_at = time.monotonic() + retry_seconds
        if not self.is_available:
            code = getattr(error, "code", Code.UNKNOWN)
            self.status.error = ServingError(code, str(error))


class ModelManager:
    """Keeps what is loaded in step with a configuration and its folders.

    All methods may be called from any thread.

    Args:
        load: Loads a version, given its folder, the model's name and the
            version's number. Raises `ValueError`, `OSError`, `ImportError` or
            `ServingError` where it cannot.
        allow_labels_for_unavailable: Whether a new label may be given to a
            version that is not loaded.
        retries: How often a version that does not load is loaded again.
        retry_seconds: The time between two attempts.
        metrics: Counts what is loaded, if given.
    """

    def __init__(
        self,
        load: Callable[[Path, str, int], Servable],
        *,
        allow_labels_for_unavailable: bool = False,
        retries: int = LoadOptions.retries,
        retry_seconds: float = LoadOptions.retry_seconds,
        metrics: Metrics | None = None,
    ):
        self._load = load
        self._retries = retries
        self._retry_seconds = retry_seconds
        self._allow_labels = allow_labels_for_unavailable
        self._metrics = metrics
        self._configs: dict[str, ModelConfig] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._versions: dict[str, dict[int, _Version]] = {}
        # Guards what is above, for moments only.
        self._lock = threading.Condition()
        # Held while versions are loaded, so that this is done once at a time.
        self._loading = threading.Lock()

    def configure(self, configs: Sequence[ModelConfig]) -> None:
        """Replaces the whole configuration; returns when it is in force.

        Args:
            configs: The models to serve. All others are unloaded.

        Raises:
            ServingError: A model that is new has no version that loads, or a
                label is given to a version that is not loaded. All else of the
                configuration is in force nevertheless.
        """
        with self._loading:
            new = {c.name for c in configs} - self._configs.keys()
            with self._lock:
                self._configs = {config.name: config for config in configs}
                gone = self._versions.keys() - self._configs.keys()
                for name in gone:
                    self._labels.pop(name, None)
                    for version in self._versions[name].values():
                        self._unload(name, version)
            refused = [self._update(config) for config in configs]
            for config in configs:
                if config.name in new:
                    self._check_loaded(config)
            for error in filter(None, refused):
                raise error

    def poll(self) -> None:
        """Loads versions that have appeared, unloads those that are gone."""
        with self._loading:
            for config in list(self._configs.values()):
                self._update(config)

    def close(self) -> None:
        """Unloads everything, without waiting for those who use it."""
        with self._loading, self._lock:
            self._configs = {}
            for versions in self._versions.values():
                for version in versions.values():
                    if version.servable is not None:
                        version.status.state = State.END
                        version.servable.close()

    @contextlib.contextmanager
    def lease(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[Servable]:
        """Hands out a version, which stays loaded for as long as it is used.

        Args:
            name: The model's name.
            version: The version's number; by default the largest loaded.
            label: The version's label, instead.

        Raises:
            ServingError: There is no such version.
        """
        with self._lock:
            found = self._find(name, version, label)
            found.users += 1
        try:
            assert found.servable is not None
            yield found.servable
        finally:
            with self._lock:
                found.users -= 1
                if not found.users:
                    self._lock.notify_all()

    def _find(
        self, name: str, number: int | None, label: str | None
    ) -> _Version:
        if label is not None:
            try:
                number = self._labels[name][label]
            except KeyError:
                raise invalid_argument(
                    f"Unrecognized servable version label: {label}"
                ) from None
        versions = self._versions.get(name, {})
        if number is None:
            wanted = f"Latest({name})"
            number = max(
                (n for n, v in versions.items() if v.is_available), default=-1
            )
        else:
            wanted = f"Specific({name}, {number})"
        found = versions.get(number)
        if found is None or not found.is_available:
            raise ServingError(
                Code.NOT_FOUND, f"Servable not found for request: {wanted}"
            )
        return found

    def statuses(
        self, name: str, version: int | None = None
    ) -> list[VersionStatus]:
        """Returns the state of all versions ever aspired, newest first.

        Args:
            name: The model's name.
            version: This one alone, if given.

        Raises:
            ServingError: There is none.
        """
        with self._lock:
            statuses = [
                dataclasses.replace(status)
                for status in self._sorted_statuses(name)
            ]
        if not statuses:
            raise ServingError(
                Code.NOT_FOUND, f"Could not find any versions of model {name}"
            )
        if version is None:
            return statuses
        chosen = [status for status in statuses if status.version == version]
        if not chosen:
            raise ServingError(
                Code.NOT_FOUND,
                f"Could not find version {version} of model {name}",
            )
        return chosen

    def available(self) -> dict[str, list[int]]:
        """Returns the numbers of the versions loaded, newest first, by model.

        Models that have none are there too.
        """
        with self._lock:
            return {
                name: [
                    status.version
                    for status in self._sorted_statuses(name)
                    if status.state == State.AVAILABLE
                ]
                for name in self._configs
            }

    def _sorted_statuses(self, name: str) -> list[VersionStatus]:
        """Returns a model's statuses, newest first. The lock is held."""
        known = self._versions.get(name, {})
        return [known[number].status for number in sorted(known, reverse=True)]

    def _update(self, config: ModelConfig) -> ServingError | None:
        """Brings one model in step with its folder and its labels.

        Versions are loaded, then labels move to them, then others are
        unloaded: who asks by a label always finds a version.

        Returns:
            Why the labels were not given, or None.
        """
        found = find_versions(config.base_path)
        folders = found or {}
        wanted = config.policy.select(folders)
        with self._lock:
            known = self._versions.setdefault(config.name, {})
        # The largest first: it is what is asked for by default.
        for number in sorted(wanted, reverse=True):
            self._update_version(config.name, number, folders[number])
        with self._lock:
            loads = any(known[n].is_available for n in wanted)
            # What is loaded stays where the folder is not there, since a file
            # system may be away for a while, and where nothing else loads.
            if found is None or (wanted and not loads):
                wanted = set(known)
            refused = self._assign_labels(config, wanted)
            for number, version in known.items():
                if number not in wanted:
                    self._unload(config.name, version)
        return refused

    def _update_version(self, name: str, number: int, path: Path) -> None:
        """Loads a version, unless it is there or has failed too often."""
        with self._lock:
            known = self._versions[name]
            version = known.get(number)
            if version is None or version.has_ended:
                version = _Version(VersionStatus(number), path)
                known[number] = version
            if version.is_available and version.path == path:
                version.forget_failures()
                return
            if (
                version.failures > self._retries
                or time.monotonic() < version.retry_at
            ):
                return
            if not version.is_available:
                version.status.state = State.LOADING
        start = time.perf_counter()
        try:
            servable = self._load(path, name, number)
        except Exception as error:
            self._count_load(name, path, False, time.perf_counter() - start)
            with self._lock:
                version.count_failure(error, self._retry_seconds)
                if (
                    version.failures > self._retries
                    and not version.is_available
                ):
                    version.status.state = State.END
            logger.error("%s version %d did not load: %s", name, number, error)
            return
        seconds = time.perf_counter() - start
        self._count_load(name, path, True, seconds)
        with self._lock:
            if version.is_available:
                # Loaded from another base path so far.
                self._unload(name, version)
            status = VersionStatus(number, State.AVAILABLE)
            known[number] = _Version(status, path, servable)
        logger.info("%s version %d loaded in %.2f s", name, number, seconds)

    def _count_load(
        self, name: str, path: Path, succeeded: bool, seconds: float
    ) -> None:
        if self._metrics is not None:
            self._metrics.observe_load(name, str(path), succeeded, seconds)

    def _unload(self, name: str, version: _Version) -> None:
        """Ends a version, once nobody uses it. The lock is held."""
        if version.is_available:
            version.status.state = State.UNLOADING
            # Elsewhere, since a request may take its time.
            threading.Thread(
                target=self._drain,
                args=(name, version),
                name=f"unload {name} {version.status.version}",
                daemon=True,
            ).start()
        elif version.status.state != State.UNLOADING:
            version.status.state = State.END
            version.forget_failures()

    def _drain(self, name: str, version: _Version) -> None:
        with self._lock:
            self._lock.wait_for(lambda: not version.users)
            servable, version.servable = version.servable, None
        assert servable is not None
        number = servable.version
        servable.close()
        # TensorFlow's graph is a circle of references, which nobody else
        # would come to collect for a long time.
        del servable
        gc.collect()
        with self._lock:
            version.status.state = State.END
        logger.info("%s version %d unloaded", name, number)

    def _check_loaded(self, config: ModelConfig) -> None:
        with self._lock:
            known = self._versions.get(config.name, {})
            if any(version.is_available for version in known.values()):
                return
            errors = [v.status.error for v in known.values() if v.status.error]
        if errors:
            raise errors[-1]
        raise ServingError(
            Code.FAILED_PRECONDITION,
            f"Expected versions of model {config.name}, folders named by "
            f"number such as 1, in {config.base_path}. Received: "
            + (
                "none that its version policy asks for"
                if config.base_path.is_dir()
                else "no such folder"
            ),
        )

    def _assign_labels(
        self, config: ModelConfig, staying: Collection[int]
    ) -> ServingError | None:
        """Gives a model its labels, all or none. The lock is held.

        Returns:
            Which label's version is not loaded, or not among those that stay.
        """
        known = self._versions.get(config.name, {})
        before = self._labels.get(config.name, {})
        for label, number in config.labels.items():
            if number in staying and known[number].is_available:
                continue
            if self._allow_labels and before.get(label, number) == number:
                continue
            return ServingError(
                Code.FAILED_PRECONDITION,
                f"Request to assign label {label} to version {number} of "
                f"model {config.name}, which is not currently available for "
                "inference",
            )
        self._labels[config.name] = dict(config.labels)
        return None


def find_versions(base_path: Path) -> dict[int, Path] | None:
    """Returns the version folders by number, or None without a base path."""
    try:
        entries = list(base_path.iterdir())
    except OSError:
        return None
    return {
        int(path.name): path
        # By length first, because Python refuses to read thousands of digits.
        for path in sorted(entries)
        if path.name.isascii()
        and path.name.isdecimal()
        and len(path.name) <= 40
        and int(path.name) <= _MAX_INT64
        and path.is_dir()
    }
