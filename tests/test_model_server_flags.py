"""The command's flags, TLS, and the services that flags turn on."""

import argparse
import datetime
import ipaddress
import json
import re
import select
import shutil
import signal
import ssl
import subprocess
import sys
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha import reflection_pb2_grpc
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.apis import model_service_pb2_grpc
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc

from keras_muffnet.model_server import ModelServer
from keras_muffnet.model_server import flags
from keras_muffnet.model_server.options import GrpcOptions
from keras_muffnet.model_server.options import LoadOptions
from tests.conftest import ROOT
from tests.conftest import free_port


def parse(*arguments):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    flags.add_arguments(parser)
    return flags.parse_args(parser, ["--model_base_path=/m", *arguments])


def test_the_table_of_flags():
    """serving/README.md lists each flag and what becomes of it."""
    text = (ROOT / "serving/README.md").read_text()
    rows = re.findall(r"^\| `--(\w+)` \| (.+) \| (.+) \|$", text, re.MULTILINE)
    known = set(vars(parse())) - {"unknown"}
    names = [name for name, _, _ in rows]
    assert sorted(names) == sorted(known)
    # Those of tensorflow_model_server.
    assert sum(theirs != "-" for _, theirs, _ in rows) == 48
    for kind, expected in (
        ("no effect", flags.NO_EFFECT),
        ("refused", flags.REFUSED),
    ):
        found = {name for name, _, here in rows if here.startswith(kind)}
        assert found == set(expected)


def test_flags_without_effect_and_unknown_ones_warn():
    given = parse("--num_load_threads=4", "--enable_profiler", "--new=1", "x")
    lines = flags.warnings(given)
    assert len(lines) == 4
    for text in ("unknown argument: --new=1", "unknown argument: x"):
        assert text in lines
    for name in ("num_load_threads", "enable_profiler"):
        assert any(f"--{name} has no effect" in line for line in lines)
    assert flags.warnings(parse("--model_name=n")) == []
    assert flags.server_arguments(given)["model_name"] == "default"


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--use_alts_credentials", "--use_alts_credentials is refused"),
        ("--use_alts_credentials=true", "Received: true"),
        ("--platform_config_file=/f", "--platform_config_file is refused"),
        ("--batching_parameters_file=/f", "needs --enable_batching"),
        ("--grpc_channel_arguments=a", "must be of the form name=value"),
    ],
)
def test_flags_that_are_refused(flag, text):
    with pytest.raises(ValueError, match=text):
        flags.server_arguments(parse(flag))
    if "alts" in flag:
        flags.server_arguments(parse("--use_alts_credentials=false"))


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--grpc_max_threads=0", "expected a positive integer, received '0'"),
        ("--rest_api_num_threads=-1", "expected a positive integer"),
        ("--rest_api_max_body_bytes=0", "expected a positive integer"),
        ("--rest_api_timeout_in_ms=0", "expected a positive integer"),
        ("--rest_api_port=70000", "a port from 0 to 65535, received '70000'"),
        ("--port=-1", "expected a port from 0 to 65535"),
    ],
)
def test_numbers_that_are_refused(capsys, flag, text):
    with pytest.raises(SystemExit):
        parse(flag)
    error = capsys.readouterr().err
    assert f"argument {flag.split('=')[0]}: " in error and text in error


def test_a_port_or_a_socket_is_required():
    with pytest.raises(ValueError, match="A port or a socket is required"):
        flags.server_arguments(parse("--rest_api_port=0", "--port=0"))
    given = parse("--rest_api_port=0", "--port=0", "--grpc_socket_path=/s")
    assert flags.server_arguments(given)["grpc_port"] is None


@pytest.mark.parametrize(
    "given",
    [
        ["--rest_api_port=0", "--port=1", "--monitoring_config_file=/f"],
        ["--rest_api_port=0", "--port=1", "--access_log"],
        ["--port=0", "--ssl_config_file=/f"],
        ["--port=0", "--enable_grpc_healthcheck_service"],
        ["--runtime=litert", "--enable_batching"],
        ["--enable_per_model_batching_parameters"],
    ],
)
def test_flags_of_what_is_off_warn(given):
    (line,) = flags.warnings(parse(*given))
    assert line.startswith(given[-1].split("=")[0] + " has no effect: ")


def test_flags_become_arguments():
    arguments = flags.server_arguments(
        parse(
            "--rest_api_port=0",
            "--port=7",
            "--tensorflow_session_parallelism=3",
            "--tensorflow_inter_op_parallelism=1",
            "--saved_model_tags=serve,gpu",
            "--max_num_load_retries=0",
            "--load_retry_interval_micros=500000",
            "--enable_per_model_batching_parameters",
            "--num_request_iterations_for_warmup=2",
            "--enable_model_warmup=false",
            "--prefer_tflite_model",
            "--per_process_gpu_memory_fraction=0.5",
            "--tensorflow_session_config_file=/s",
            "--grpc_channel_arguments=grpc.max_connection_age_ms=20,a=b",
            "--grpc_max_threads=5",
            "--grpc_socket_path=/tmp/s",
            "--enable_grpc_healthcheck_service",
            "--enable_grpc_reflection",
            "--enable_serialization_as_tensor_content",
            "--ssl_config_file=/t",
            "--rest_api_num_threads=6",
        )
    )
    assert arguments["port"] is None
    assert arguments["grpc_port"] == 7
    assert arguments["threads"] == 6
    assert arguments["loading"] == LoadOptions(
        tags=frozenset({"serve", "gpu"}),
        session_config_file="/s",
        intra_op_threads=3,
        inter_op_threads=1,
        gpu_memory_fraction=0.5,
        warm_up=False,
        warm_up_iterations=2,
        prefer_tflite=True,
        retries=0,
        retry_seconds=0.5,
        batching_per_version=True,
    )
    assert arguments["grpc"] == GrpcOptions(
        threads=5,
        socket_path="/tmp/s",
        channel_arguments=(("grpc.max_connection_age_ms", 20), ("a", "b")),
        ssl_config_file="/t",
        health=True,
        reflection=True,
        tensor_content=True,
    )


def test_a_configuration_file_wins():
    """The Docker image's entry point passes all three."""
    arguments = flags.server_arguments(
        parse("--model_name=n", "--model_config_file=/f")
    )
    assert arguments["model_base_path"] is None
    assert arguments["model_config_file"] == "/f"


# Servers


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel; a base path is a folder that holds copies of it."""
    folder = tmp_path_factory.mktemp("saved")
    toy = tf.Module()
    toy.factor = tf.Variable(2.0)
    scale = tf.function(lambda x: {"y": x * toy.factor})
    vector = tf.TensorSpec([None], tf.float32, name="x")
    signature = scale.get_concrete_function(x=vector)
    tf.saved_model.save(toy, folder, {"serving_default": signature})
    return folder


@pytest.fixture(scope="module")
def base(saved, tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / "toy"
    shutil.copytree(saved, base / "1")
    return base


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """An `SSLConfig` that asks for a client's certificate, and its parts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    chain = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "chain.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(secret)
    parts = {"server_key": secret, "server_cert": chain, "custom_ca": chain}
    lines = [f"{k}: {json.dumps(v.decode())}" for k, v in parts.items()]
    (folder / "ssl.config").write_text(
        "\n".join([*lines, "client_verify: true"])
    )
    return folder


def status(channel):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "toy"
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    answer = stub.GetModelStatus(request, timeout=30)
    return answer.model_version_status[0].state


def test_tls(base, tls):
    config = tls / "ssl.config"
    with ModelServer(
        base,
        model_name="toy",
        grpc_port=0,
        grpc=GrpcOptions(ssl_config_file=config),
        ssl_config_file=config,
    ) as server:
        key, chain = [(tls / f).read_bytes() for f in ("key.pem", "chain.pem")]
        address = f"127.0.0.1:{server.grpc_port}"
        known = grpc.ssl_channel_credentials(chain, key, chain)
        with grpc.secure_channel(address, known) as channel:
            assert status(channel) == 30
        stranger = grpc.ssl_channel_credentials(chain)
        with (
            grpc.secure_channel(address, stranger) as channel,
            pytest.raises(grpc.RpcError),
        ):
            status(channel)
        assert server.url.startswith("https://127.0.0.1:")
        url = f"{server.url}/v1/models/toy"
        context = ssl.create_default_context(cafile=tls / "chain.pem")
        with pytest.raises(OSError):
            urllib.request.urlopen(url, timeout=30, context=context)
        context.load_cert_chain(tls / "chain.pem", tls / "key.pem")
        with urllib.request.urlopen(
            url, timeout=30, context=context
        ) as response:
            assert response.status == 200


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('server_key: "a"', "Expected a `server_cert` in PEM"),
        ("a: 1", "text proto of type SSLConfig"),
        (
            'server_key: "a" server_cert: "b" client_verify: true',
            "`client_verify` needs a `custom_ca`",
        ),
        (
            'server_key: "a" server_cert: "b"',
            "ssl.config: Expected a key with its certificate",
        ),
    ],
)
def test_ssl_configurations_that_are_refused(tmp_path, text, why):
    file = tmp_path / "ssl.config"
    file.write_text(text)
    with pytest.raises(ValueError, match=why):
        ModelServer("/m", ssl_config_file=file)
    with pytest.raises(ValueError, match=why):
        ModelServer("/m", grpc=GrpcOptions(ssl_config_file=str(file)))


def test_services_and_answers_of_gRPC(base, tmp_path):
    path = str(tmp_path / "socket")
    options = GrpcOptions(
        threads=2,
        socket_path=path,
        channel_arguments=(("grpc.max_concurrent_streams", 5),),
        health=True,
        reflection=True,
        tensor_content=True,
    )
    with (
        # No port, but a socket.
        ModelServer(base, model_name="toy", port=None, grpc=options) as server,
        grpc.insecure_channel(f"unix:{path}") as channel,
    ):
        assert server.url == "" and server.grpc_port is None
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "tensorflow.serving.PredictionService"):
            request = health_pb2.HealthCheckRequest(service=name)
            assert health.Check(request, timeout=30).status == 1  # SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection.ServerReflectionInfo(iter([request]))
        names = {x.name for x in answer.list_services_response.service}
        assert names >= {
            "grpc.health.v1.Health",
            "tensorflow.serving.PredictionService",
            "tensorflow.serving.ModelService",
        }
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "toy"
        values = np.array([1, 2], np.float32)
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(values))
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        tensor = stub.Predict(request, timeout=30).outputs["y"]
        assert tensor.tensor_content == (2 * values).tobytes()
    with (
        ModelServer(base, model_name="toy", port=None, grpc_port=0) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
        pytest.raises(grpc.RpcError) as error,
    ):
        health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=30
        )
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
    away = GrpcOptions(socket_path=str(tmp_path / "away" / "socket"))
    with pytest.raises(OSError, match=r"Received: .*away/socket"):
        ModelServer(base, port=None, grpc=away).__enter__()


def test_sessions_are_configured(base, tmp_path):
    file = tmp_path / "session.config"
    file.write_text("inter_op_parallelism_threads: 1")
    loading = LoadOptions(session_config_file=str(file), intra_op_threads=1)
    with ModelServer(base, loading=loading) as server:
        assert server.versions == {"default": [1]}
    file.write_text("none")
    with pytest.raises(ValueError, match="text proto of type ConfigProto"):
        ModelServer(base, loading=loading).__enter__()
    loading = LoadOptions(tags=frozenset({"gpu", "serve"}))
    with pytest.raises(ValueError, match="the tags 'gpu', 'serve'"):
        ModelServer(base, loading=loading).__enter__()


def test_a_first_version_is_waited_for(saved, tmp_path):
    base = tmp_path / "toy"
    base.mkdir()
    config = tmp_path / "models.config"
    config.write_text(
        'model_config_list { config { name: "toy" model_platform: "tensorflow"'
        f' base_path: "{base}" }} }}'
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "keras_muffnet.model_server"),
            "--model_base_path=/models/model",
            "--model_name=model",
            f"--model_config_file={config}",
            "--rest_api_port=0",
            f"--port={free_port()}",
            "--file_system_poll_wait_seconds=0.05",
            "--of_a_later_release=3",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = [process.stderr.readline() for _ in range(2)]
        assert "unknown argument: --of_a_later_release=3" in lines[0]
        assert f"model toy found under base path {base}; waiting" in lines[1]
        assert not select.select([process.stdout], [], [], 0)[0]
        shutil.copytree(saved, tmp_path / "aside")
        (tmp_path / "aside").rename(base / "4")
        assert process.stdout.readline() == "Serving toy version 4\n"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
