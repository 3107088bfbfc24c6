"""What `serving/` says: valid, hardened, and the same in every file."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler
from http.server import HTTPServer

import kubernetes_validate
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from keras_muffnet.model_server.configuration import read_batching_parameters
from keras_muffnet.model_server.configuration import read_monitoring_config
from serving import publish
from tests.conftest import ROOT

SERVING = ROOT / "serving"
CONFIG = SERVING / "config"
README = (SERVING / "README.md").read_text()

IMAGE = "tensorflow/serving:2.21.0"
STATUS = f"/v1/models/{publish.MODEL}"
GRPC, REST = publish.GRPC_PORT, publish.REST_PORT

# Flags that both TF Serving and the embedded server have.
FLAGS = {
    "--port",
    "--rest_api_port",
    "--model_name",
    "--model_base_path",
    "--model_config_file",
    "--model_config_file_poll_wait_seconds",
    "--enable_batching",
    "--batching_parameters_file",
    "--monitoring_config_file",
    "--rest_api_timeout_in_ms",
    "--allow_version_labels_for_unavailable_models",
    "--rest_api_enable_cors_support",
    "--file_system_poll_wait_seconds",
}

# Of TF Serving 2.21.
COUNTERS = {
    ":tensorflow:serving:request_count",
    ":tensorflow:cc:saved_model:load_attempt_count",
}
HISTOGRAMS = {
    ":tensorflow:serving:request_latency",
    ":tensorflow:serving:batching_session:input_batch_size",
    ":tensorflow:serving:batching_session:processed_batch_size",
    ":tensorflow:serving:batching_session:queuing_latency",
}
METRICS = COUNTERS | {
    f"{histogram}_{part}"
    for histogram in HISTOGRAMS
    for part in ("bucket", "sum", "count")
}


def load(name):
    return yaml.safe_load((SERVING / name).read_text())


def manifests():
    for path in sorted((SERVING / "kubernetes").glob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text())


def manifest(kind, name=publish.MODEL):
    (found,) = (
        each
        for each in manifests()
        if each["kind"] == kind and each["metadata"]["name"] == name
    )
    return found


COMPOSE = load("docker-compose.yml")
POD = manifest("Deployment")["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
DASHBOARD = json.loads(
    (SERVING / "monitoring/grafana/dashboards/muffnet.json").read_text()
)
EXPRESSIONS = [
    target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]


def model_config():
    config = text_format.Parse(
        (CONFIG / "models.config").read_text(),
        model_server_config_pb2.ModelServerConfig(),
    )
    (entry,) = config.model_config_list.config
    return entry


# Each file by itself.


def test_models_config_labels_a_version_that_it_loads():
    entry = model_config()
    assert entry.name == publish.MODEL
    assert entry.base_path == f"/models/{publish.MODEL}"
    assert entry.model_platform == "tensorflow"
    assert set(entry.version_labels) == {publish.LABEL}
    loaded = entry.model_version_policy.specific.versions
    assert entry.version_labels[publish.LABEL] in loaded


def test_configurations_are_read():
    parameters = read_batching_parameters(CONFIG / "batching.config")
    assert parameters.max_batch_size == 32
    path = read_monitoring_config(CONFIG / "monitoring.config")
    assert path == "/monitoring/prometheus/metrics"


def test_compose_file_follows_the_specification():
    done = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema"),
            *("--builtin-schema", "vendor.compose-spec"),
            SERVING / "docker-compose.yml",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_manifests_follow_the_schemas_of_kubernetes(version):
    kinds = []
    for each in manifests():
        kubernetes_validate.validate(each, version, strict=True)
        kinds.append(each["kind"])
    assert sorted(set(kinds)) == [
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "Service",
    ]


def test_dashboard_asks_for_metrics_that_there_are():
    asked = set(re.findall(r":tensorflow:[\w:]+", " ".join(EXPRESSIONS)))
    assert asked <= METRICS
    kept = load("monitoring/prometheus.yml")["scrape_configs"][0]
    (kept,) = kept["metric_relabel_configs"]
    assert kept["action"] == "keep"
    for metric in asked:
        assert re.fullmatch(kept["regex"], metric)
    # Microseconds and shares, as the panels' units say.
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            if "latency" in target["expr"]:
                assert panel["fieldConfig"]["defaults"]["unit"] == "µs"
    for needed in ("request_count", "latency_bucket", "batching", "load_"):
        assert any(needed in metric for metric in asked), needed


def test_dashboard_panels_do_not_overlap():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_kustomization_names_every_file():
    folder = SERVING / "kubernetes"
    files = {path.name for path in folder.glob("*.yaml")}
    resources = set(load("kubernetes/kustomization.yaml")["resources"])
    assert resources == (files - {"kustomization.yaml"}) | {"../config"}
    (generated,) = load("config/kustomization.yaml")["configMapGenerator"]
    assert set(generated["files"]) == {
        path.name for path in CONFIG.glob("*.config")
    }


# The files together.


def test_the_image_is_the_same_everywhere():
    assert COMPOSE["services"]["serving"]["image"] == IMAGE
    assert CONTAINER["image"] == IMAGE
    predictor = load("kserve/inferenceservice.yaml")["spec"]["predictor"]
    assert IMAGE.endswith(":" + predictor["model"]["runtimeVersion"])
    named = re.findall(
        r"tensorflow/serving:[\w.-]+",
        README + (SERVING / "docker-compose.yml").read_text(),
    )
    assert set(named) == {IMAGE}
    for name, service in COMPOSE["services"].items():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name


def test_the_servers_flags_are_the_same_and_known():
    command = COMPOSE["services"]["serving"]["command"]
    assert COMPOSE["services"]["serving"]["entrypoint"] == CONTAINER["command"]
    assert command == CONTAINER["args"]
    flags = dict(flag.split("=", 1) for flag in command)
    assert flags.keys() <= FLAGS
    assert flags["--port"] == str(GRPC)
    assert flags["--rest_api_port"] == str(REST)
    # A label of the file is new at the first start.
    assert flags["--allow_version_labels_for_unavailable_models"] == "true"
    # It would take back what publish.py tells the server, step by step.
    assert "--model_config_file_poll_wait_seconds" not in flags
    for flag, name in {
        "--model_config_file": "models.config",
        "--batching_parameters_file": "batching.config",
        "--monitoring_config_file": "monitoring.config",
    }.items():
        assert flags[flag] == f"/config/{name}"
        assert (CONFIG / name).is_file()


def test_the_embedded_server_has_the_flags(run_python):
    help_text = run_python("-m", "keras_muffnet.model_server", "--help")
    missing = {flag for flag in FLAGS if f"{flag} " not in help_text}
    assert not missing


def test_ports_are_the_same_everywhere():
    ports = COMPOSE["services"]["serving"]["ports"]
    assert ports == [f"127.0.0.1:{port}:{port}" for port in (GRPC, REST)]
    named = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert named == {"grpc": GRPC, "rest": REST}
    for name in (publish.MODEL, "muffnet-pods"):
        for port in manifest("Service", name)["spec"]["ports"]:
            assert port["port"] == named[port["targetPort"]]
    for probe in ("startupProbe", "readinessProbe"):
        assert CONTAINER[probe]["httpGet"] == {"path": STATUS, "port": "rest"}
    assert CONTAINER["livenessProbe"]["tcpSocket"]["port"] in named
    for rule in manifest("NetworkPolicy")["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= named.keys()


def test_paths_are_the_same_everywhere():
    mounts = COMPOSE["services"]["serving"]["volumes"]
    targets = {mount["target"]: mount["source"] for mount in mounts}
    assert targets == {"/models": "${MODELS:-./models}", "/config": "./config"}
    assert publish.BASE_PATH == SERVING / "models" / publish.MODEL
    assert publish.CONFIG == CONFIG / "models.config"
    mounted = {m["mountPath"]: m["name"] for m in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    claim = volumes[mounted["/models"]]["persistentVolumeClaim"]["claimName"]
    assert manifest("PersistentVolumeClaim", claim)
    (generated,) = load("config/kustomization.yaml")["configMapGenerator"]
    config_map = volumes[mounted["/config"]]["configMap"]["name"]
    assert config_map == generated["name"]
    service = load("kserve/inferenceservice.yaml")
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert service["kind"] == "InferenceService"
    assert service["metadata"]["name"] == publish.MODEL
    model = service["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "tensorflow"}
    assert model["storageUri"] == f"pvc://{claim}/{publish.MODEL}"
    for source in compose_sources():
        assert (SERVING / source).exists(), source


def compose_sources():
    for name in ("prometheus", "grafana"):
        for volume in COMPOSE["services"][name]["volumes"]:
            if volume.startswith("./"):
                yield volume.split(":")[0]


def test_prometheus_asks_where_the_server_answers():
    (job,) = load("monitoring/prometheus.yml")["scrape_configs"]
    text = (CONFIG / "monitoring.config").read_text()
    assert f'path: "{job["metrics_path"]}"' in text
    assert job["static_configs"] == [{"targets": [f"serving:{REST}"]}]
    assert "serving" in COMPOSE["services"]
    assert any(f'up{{job="{job["job_name"]}"}}' == e for e in EXPRESSIONS)


def test_grafana_finds_its_source_and_its_dashboard():
    folder = "monitoring/grafana/provisioning"
    (source,) = load(f"{folder}/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert COMPOSE["services"]["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]
    used = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]}
    (variable,) = DASHBOARD["templating"]["list"]
    assert used == {source["uid"]} == {variable["datasource"]["uid"]}
    assert variable["current"]["value"] == publish.MODEL
    (provider,) = load(f"{folder}/dashboards/dashboards.yml")["providers"]
    grafana = COMPOSE["services"]["grafana"]
    path = provider["options"]["path"]
    assert f"./monitoring/grafana/dashboards:{path}:ro" in grafana["volumes"]
    home = "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"
    assert grafana["environment"][home] == f"{path}/muffnet.json"


def test_selectors_choose_the_pods_that_there_are():
    labels = {"app": publish.MODEL}
    deployment = manifest("Deployment")["spec"]
    assert deployment["template"]["metadata"]["labels"] == labels
    assert "replicas" not in deployment
    budget = manifest("PodDisruptionBudget")["spec"]["selector"]
    policy = manifest("NetworkPolicy")["spec"]["podSelector"]
    for selector in (deployment["selector"], budget, policy):
        assert selector == {"matchLabels": labels}
    for name in (publish.MODEL, "muffnet-pods"):
        assert manifest("Service", name)["spec"]["selector"] == labels
    scaled = manifest("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert scaled == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": publish.MODEL,
    }


# What the containers go without.


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_containers_of_compose_are_hardened(name):
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert service["deploy"]["resources"]["limits"].keys() == {
        "cpus",
        "memory",
        "pids",
    }
    for port in service["ports"]:
        assert port.startswith("127.0.0.1:")
    for volume in service["volumes"]:
        if isinstance(volume, dict):
            assert volume["read_only"] is True
        elif volume.startswith("."):
            assert volume.endswith(":ro")


def test_pods_keep_to_the_restricted_standard():
    context = POD["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = [
        mount["mountPath"]
        for mount in CONTAINER["volumeMounts"]
        if not mount.get("readOnly")
    ]
    assert writable == ["/tmp"]
    assert manifest("NetworkPolicy")["spec"]["egress"] == []
    predictor = load("kserve/inferenceservice.yaml")["spec"]["predictor"]
    assert predictor["securityContext"]["runAsNonRoot"] is True
    assert predictor["model"]["securityContext"]["runAsUser"] > 0


@pytest.mark.parametrize(
    ("state", "healthy"), [("AVAILABLE", True), ("LOADING", False)]
)
def test_healthcheck_asks_for_an_available_version(state, healthy):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == STATUS
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"state": state}).encode())

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request).start()
        kind, *command = COMPOSE["services"]["serving"]["healthcheck"]["test"]
        assert kind == "CMD"
        assert f"/{REST} " in command[-1]
        command[-1] = command[-1].replace(str(REST), str(server.server_port))
        done = subprocess.run(command, timeout=30)
    assert (done.returncode == 0) == healthy


# What README.md tells the user to type.


def commands():
    for block in re.findall(r"(?m)^(?:    .*\n)+", README):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True)


def test_commands_of_the_readme_fit_the_files():
    words = [word for command in commands() for word in command]
    for word in words:
        if flag := re.match(r"--\w+_\w+(?==|$)|--port(?==|$)", word):
            assert flag[0] in FLAGS, word
        for port in re.findall(r"(?:127\.0\.0\.1|localhost):(\d+)", word):
            assert int(port) in {GRPC, REST, 9090, 3000}, word
        for name, label in re.findall(r"/v1/models/([\w.-]+)(\S*)", word):
            assert name == publish.MODEL, word
            if label.startswith("/labels/"):
                assert label.startswith(f"/labels/{publish.LABEL}"), word
        if word.startswith("serving/") and "models/" not in word:
            assert os.path.exists(ROOT / word), word
    publishing = [c[2:] for c in commands() if "serving/publish.py" in c]
    assert {command[0] for command in publishing} == {
        "publish",
        "rollback",
        "status",
    }
    for command in publishing:
        publish._parse_flags(command)
