"""Publishes a model's versions to a running TF Serving, and takes them back.

    python serving/publish.py publish runs/quickstart/muffnet --image digit.png
    python serving/publish.py status
    python serving/publish.py rollback

A version is copied aside and renamed into the base path, loaded, asked for a
prediction, and only then given the label that clients ask for. Where a step
fails, the label stays where it was and the version is moved out of the server's
sight, to `.rejected-<number>`. models.config is written last: a restart finds
what was checked. Every command may be stopped and given again.

The version that had the label before stays loaded until the next publication,
for `rollback`.
"""

import argparse
import base64
import contextlib
import filecmp
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import struct
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

from keras_muffnet._files import locked
from keras_muffnet._files import written_aside

HERE = pathlib.Path(__file__).resolve().parent
CONFIG = HERE / "config" / "models.config"
BASE_PATH = HERE / "models" / "muffnet"
MODEL = "muffnet"
LABEL = "stable"
GRPC_PORT = 8500
REST_PORT = 8501

_WARMUP = pathlib.Path("assets.extra", "tf_serving_warmup_requests")
_REJECTED = ".rejected-"
_POLL_SECONDS = 0.2
_CALL_SECONDS = 60  # for one request to the server

# Not through a proxy that the environment names: the server is near.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class PublishError(Exception):
    """What was asked for could not be done; the text says why."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    flags = _parse_flags(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        publisher = Publisher(
            Server(flags.model, flags.host, flags.rest_port, flags.grpc_port),
            flags.base_path,
            flags.config,
            flags.label,
            flags.timeout,
        )
        if flags.command == "publish":
            publisher.publish(flags.source, flags.image)
        elif flags.command == "rollback":
            publisher.rollback()
        else:
            publisher.print_status()
    except KeyboardInterrupt:
        print("Interrupted. The same command may be given again.")
        return 130
    except (ImportError, OSError, PublishError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    return 0


def _parse_flags(argv: list[str] | None) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", default=MODEL, help="the model's name")
    common.add_argument(
        "--label", default=LABEL, help="the label that clients ask for"
    )
    common.add_argument(
        "--base-path",
        type=pathlib.Path,
        default=BASE_PATH,
        help="folder of the numbered versions, as it is called here; "
        "models.config has the server's name for it",
    )
    common.add_argument(
        "--config",
        type=pathlib.Path,
        default=CONFIG,
        help="the models.config that the server reads when it starts",
    )
    common.add_argument("--host", default="127.0.0.1", help="the server's")
    common.add_argument(
        "--rest-port", type=int, default=REST_PORT, help="the server's"
    )
    common.add_argument(
        "--grpc-port", type=int, default=GRPC_PORT, help="the server's"
    )
    common.add_argument(
        "--timeout",
        type=float,
        default=120,
        help="seconds that a version may take to load",
    )
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text,
            parents=[common],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    publish = add("publish", "load and check a version, then label it")
    publish.add_argument(
        "source",
        type=pathlib.Path,
        help="a SavedModel, or a base path of which the newest is taken",
    )
    publish.add_argument(
        "--image",
        type=pathlib.Path,
        help="PNG or JPEG to ask a prediction of; without it, the SavedModel's "
        "own warm-up request is asked",
    )
    add("rollback", "move the label back to the version before")
    add("status", "print the versions, their states and the label")
    return parser.parse_args(argv)


class Server:
    """A TF Serving, or what speaks like it.

    Args:
        model: The model's name.
        host: Name or address of the server.
        rest_port: Port of the REST API.
        grpc_port: Port of the gRPC API.
    """

    def __init__(self, model: str, host: str, rest_port: int, grpc_port: int):
        name = urllib.parse.quote(model, safe="")
        self.model = model
        self._url = f"http://{host}:{rest_port}/v1/models/{name}"
        self._grpc_address = f"{host}:{grpc_port}"

    def state(self, version: int) -> tuple[str, str]:
        """Returns a version's state, such as `AVAILABLE`, and its error.

        The state of a version that the server does not know is "".
        """
        answer = self._ask(f"/versions/{version}", missing_is_none=True)
        if answer is None:
            return "", ""
        (entry,) = answer["model_version_status"]
        return entry["state"], entry["status"]["error_message"]

    def labeled(self, label: str) -> int | None:
        """Returns the version behind a label; None if there is none."""
        label = urllib.parse.quote(label, safe="")
        answer = self._ask(f"/labels/{label}/metadata", missing_is_none=True)
        return None if answer is None else int(answer["model_spec"]["version"])

    def predict(self, version: int, request: dict) -> Any:
        """Returns what a version answers to a request in columnar form."""
        return self._ask(f"/versions/{version}:predict", request)["outputs"]

    def reload(self, config: Any) -> None:
        """Has the server follow a `ModelServerConfig`.

        Raises:
            PublishError: It refuses to, or does not answer.
        """
        import grpc
        from tensorflow_serving.apis import model_management_pb2
        from tensorflow_serving.apis import model_service_pb2_grpc

        request = model_management_pb2.ReloadConfigRequest(config=config)
        options = [("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(self._grpc_address, options) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            try:
                answer = stub.HandleReloadConfigRequest(
                    request, timeout=_CALL_SECONDS
                )
            except grpc.RpcError as error:
                raise PublishError(
                    f"{self._grpc_address} refused the configuration: "
                    f"{error.code().name}: {error.details()}"
                ) from error
        if answer.status.error_code:
            raise PublishError(
                f"{self._grpc_address} refused the configuration: "
                f"{answer.status.error_message}"
            )

    def _ask(
        self,
        path: str,
        body: dict | None = None,
        missing_is_none: bool = False,
    ) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data)
        try:
            with _open(request, timeout=_CALL_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            # An unknown version is 404, an unknown label 400.
            if missing_is_none and error.code in (400, 404):
                return None
            text = error.read(1000).decode(errors="replace")
            raise PublishError(
                f"{request.full_url} answered {error.code}: {text}"
            ) from error
        except (OSError, ValueError) as error:
            raise PublishError(
                f"No answer from {request.full_url}: {error}"
            ) from error


class Publisher:
    """Moves versions and their label.

    Args:
        server: What serves the versions.
        base_path: Folder of the versions.
        config_path: The models.config that the server starts with.
        label: The label that clients ask for.
        timeout: Seconds that a version may take to load.
    """

    def __init__(
        self,
        server: Server,
        base_path: pathlib.Path,
        config_path: pathlib.Path,
        label: str,
        timeout: float,
    ):
        self._server = server
        self._base_path = base_path
        self._config_path = config_path
        self._label = label
        self._timeout = timeout

    def publish(self, source: pathlib.Path, image: pathlib.Path | None) -> None:
        """Serves a SavedModel under the label.

        Args:
            source: The SavedModel, or a base path that holds some. Where the
                same files are there already as a version that is not older
                than the label's, that version is taken.
            image: An encoded image to ask a prediction of; None for the
                SavedModel's warm-up request.

        Raises:
            PublishError: A step failed; the label is where it was.
        """
        source = _saved_model(source)
        request = _image_request(image) if image else _warmup_request(source)
        with _locked(self._base_path):
            config = _read_config(self._config_path)
            # Whether it answers, before anything is copied.
            self._server.labeled(self._label)
            current = _entry(config, self._server.model).version_labels.get(
                self._label
            )
            version = _place(source, self._base_path, oldest=current or 1)
            if version == current:
                self._server.reload(config)
                print(f"Version {version} is {self._label} already.")
                return
            try:
                self._check(config, current, version, request)
                config_after = self._changed(
                    config, {current, version}, version
                )
                self._move_label(config_after, version)
                _write_config(self._config_path, config_after)
            except BaseException:
                self._withdraw(config, version)
                raise
        print(f"Version {version} is {self._label}.")

    def rollback(self) -> None:
        """Moves the label to the version before, and unloads the later one.

        Raises:
            PublishError: No earlier version is loaded, or the server refuses.
        """
        with _locked(self._base_path):
            config = _read_config(self._config_path)
            entry = _entry(config, self._server.model)
            current = entry.version_labels.get(self._label)
            loaded = entry.model_version_policy.specific.versions
            earlier = [v for v in loaded if current and v < current]
            if not earlier:
                self._server.reload(config)  # an interrupted rollback ends so
                raise PublishError(
                    f"Expected {self._config_path} to list a version below "
                    f"that of {self._label!r}. Received: versions "
                    f"{list(loaded)}, {self._label!r} at {current}"
                )
            version = max(earlier)
            self._move_label(
                self._changed(config, {version, current}, version), version
            )
            # Only then, so that the label never names what is not loaded.
            # Requests without a label would move to the later version.
            config_after = self._changed(config, {version}, version)
            _write_config(self._config_path, config_after)
            self._server.reload(config_after)
        print(f"Version {version} is {self._label}; {current} is unloaded.")

    def print_status(self) -> None:
        """Prints the versions there are, their states and the label."""
        entry = _entry(_read_config(self._config_path), self._server.model)
        listed = set(entry.model_version_policy.specific.versions)
        on_disk = _versions(self._base_path)
        print("version  on disk  in models.config  state")
        for version in sorted(listed | on_disk, reverse=True):
            state, error = self._server.state(version)
            print(
                f"{version:<8} {_yes(version in on_disk):<8} "
                f"{_yes(version in listed):<17} {state or '-'} {error}".rstrip()
            )
        print(
            f"{self._label}: {self._server.labeled(self._label)} in the "
            f"server, {entry.version_labels.get(self._label)} in models.config"
        )

    def _check(
        self, config: Any, current: int | None, version: int, request: dict
    ) -> None:
        """Loads a version, the label as it was, and asks it."""
        if self._server.state(version)[0] != "AVAILABLE":
            self._server.reload(
                self._changed(config, {current, version}, current)
            )
            self._wait(version)
        outputs = self._server.predict(version, request)
        numbers = list(_numbers(outputs))
        if not numbers or not all(map(math.isfinite, numbers)):
            raise PublishError(
                f"Expected version {version} to answer finite numbers. "
                f"Received: {str(outputs)[:200]}"
            )

    def _wait(self, version: int) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            state, error = self._server.state(version)
            if state == "AVAILABLE":
                return
            if state == "END" and error:
                raise PublishError(f"Version {version} did not load: {error}")
            if time.monotonic() > deadline:
                raise PublishError(
                    f"Version {version} did not load within {self._timeout:g} "
                    f"seconds. Its state: {state or 'unknown to the server'}"
                )
            time.sleep(_POLL_SECONDS)

    def _move_label(self, config: Any, version: int) -> None:
        """Has the server follow a configuration; checks where the label is."""
        self._server.reload(config)
        labeled = self._server.labeled(self._label)
        if labeled != version:
            raise PublishError(
                f"Expected the server to have {self._label!r} at version "
                f"{version}. Received: {labeled}"
            )

    def _withdraw(self, config: Any, version: int) -> None:
        """Undoes a publication that failed."""
        _write_config(self._config_path, config)
        try:
            self._server.reload(config)
        except PublishError as error:
            print(f"The server did not reload: {error}", file=sys.stderr)
        folder = self._base_path / str(version)
        rejected = folder.with_name(f"{_REJECTED}{version}")
        os.replace(folder, rejected)
        print(f"Version {version} is now {rejected}", file=sys.stderr)

    def _changed(
        self, config: Any, versions: Iterable[int | None], labeled: int | None
    ) -> Any:
        """Returns a configuration with other versions, and the label."""
        changed = type(config)()
        changed.CopyFrom(config)
        entry = _entry(changed, self._server.model)
        entry.ClearField("model_version_policy")
        entry.model_version_policy.specific.versions.extend(
            sorted(version for version in versions if version)
        )
        if labeled:
            entry.version_labels[self._label] = labeled
        return changed


def _locked(
    base_path: pathlib.Path,
) -> contextlib.AbstractContextManager[None]:
    """Keeps other publications from a base path."""
    return locked(
        base_path,
        PublishError(f"Another publication to {base_path} is in progress"),
    )


def _saved_model(source: pathlib.Path) -> pathlib.Path:
    """Returns the SavedModel that a path stands for."""
    newest = source / str(max(_versions(source), default=0))
    for folder in (source, newest):
        if (folder / "saved_model.pb").is_file():
            return folder
    raise PublishError(
        "Expected a SavedModel, or a folder of numbered ones. "
        f"Received: {str(source)!r}"
    )


def _versions(base_path: pathlib.Path, prefix: str = "") -> set[int]:
    """Returns the numbers of the folders that are named so."""
    if not base_path.is_dir():
        return set()
    names = (entry.name for entry in base_path.iterdir() if entry.is_dir())
    matches = (re.fullmatch(f"{re.escape(prefix)}([0-9]+)", n) for n in names)
    return {int(match[1]) for match in matches if match}


def _place(source: pathlib.Path, base_path: pathlib.Path, oldest: int) -> int:
    """Copies a SavedModel into a base path; returns its version."""
    versions = _versions(base_path)
    for version in sorted(versions, reverse=True):
        folder = base_path / str(version)
        if version >= oldest and _same_files(source, folder):
            return version
    # A number is not used again, so that nobody takes one model for another.
    versions |= _versions(base_path, _REJECTED)
    version = 1 + max(versions, default=0)
    with written_aside(base_path / str(version)) as folder:
        try:
            shutil.copytree(source, folder)
        except shutil.Error as error:
            # A list of all files that were not copied, for one full disk.
            file, copy, reason = error.args[0][0]
            raise PublishError(
                f"{file} was not copied to {copy}: {reason}"
            ) from error
    return version


def _same_files(first: pathlib.Path, second: pathlib.Path) -> bool:
    names = [
        {
            path.relative_to(folder)
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in (first, second)
    ]
    return names[0] == names[1] and all(
        filecmp.cmp(first / name, second / name, shallow=False)
        for name in names[0]
    )


def _image_request(image: pathlib.Path) -> dict:
    return {
        "signature_name": "serving_bytes",
        "inputs": {"image_bytes": [_to_json(image.read_bytes())]},
    }


def _warmup_request(saved_model: pathlib.Path) -> dict:
    """Returns the first warm-up request of a SavedModel, for REST."""
    path = saved_model / _WARMUP
    if not path.is_file():
        raise PublishError(
            f"Expected --image, or a SavedModel with {_WARMUP}. "
            f"Received: {str(saved_model)!r}"
        )
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    with path.open("rb") as file:
        # A TFRecord: its length, a checksum of that, the record.
        (length, _) = struct.unpack("<QI", file.read(12))
        log = prediction_log_pb2.PredictionLog.FromString(file.read(length))
    request = log.predict_log.request
    return {
        "signature_name": request.model_spec.signature_name,
        "inputs": {
            name: _to_json(tf.make_ndarray(tensor).tolist())
            for name, tensor in request.inputs.items()
        },
    }


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, list):
        return [_to_json(element) for element in value]
    return value


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        yield from itertools.chain.from_iterable(map(_numbers, value))
    elif isinstance(value, (int, float)):
        yield value


def _read_config(path: pathlib.Path) -> Any:
    """Reads a models.config; returns a `ModelServerConfig`."""
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    config = model_server_config_pb2.ModelServerConfig()
    try:
        return text_format.Parse(path.read_text(), config)
    except text_format.ParseError as error:
        raise PublishError(f"{path}: {error}") from error


def _write_config(path: pathlib.Path, config: Any) -> None:
    """Replaces a models.config, all but the comment at its top."""
    from google.protobuf import text_format

    lines = path.read_text().splitlines(keepends=True)
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    text = "".join(comment) + text_format.MessageToString(config)
    with written_aside(path) as aside:
        aside.write_text(text)


def _entry(config: Any, model: str) -> Any:
    for entry in config.model_config_list.config:
        if entry.name == model:
            return entry
    names = [entry.name for entry in config.model_config_list.config]
    raise PublishError(
        f"Expected models.config to have a model {model!r}. Received: {names}"
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    sys.exit(main())
