"""The benchmark of training, end to end on one small setting."""

import csv


def test_a_backend_is_measured(run_python, tmp_path):
    path = tmp_path / "training.csv"
    run_python(
        *("-m", "tools.benchmarks.training"),
        *("--data", "digits", "--alpha", "0.1", "--batch-size", "4"),
        *("--steps", "1", "--repeats", "1", "--no-peers"),
        *("--backends", "torch", "--output", str(path)),
    )
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["way"] for row in rows] == ["keras", "fused", "plain"]
    for row in rows:
        assert row["model"] == "MuffNet 0.1"
        assert (row["backend"], row["size"], row["batch_size"]) == (
            "torch",
            "32",
            "4",
        )
        rates = [
            float(row[f"{name}_images_s"]) for name in ("input", "step", "both")
        ]
        assert all(rate > 0 for rate in rates)
        assert 0 <= float(row["waiting_share"]) < 1
        assert float(row["rss_mib"]) > 50
        assert float(row["evaluate_cpu_ms"]) > 0
        assert float(row["predict_cpu_ms"]) > 0
    before, _, plain = rows
    ratio = float(plain["step_cpu_ms"]) / float(before["step_cpu_ms"])
    assert float(before["cpu_to_first"]) == 1
    assert abs(float(plain["cpu_to_first"]) / ratio - 1) < 0.05
