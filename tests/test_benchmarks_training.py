"""The benchmark of training, end to end on one small setting."""

import csv


def test_a_backend_is_measured(run_python, tmp_path):
    path = tmp_path / "training.csv"
    run_python(
        *("-m", "tools.benchmarks.training"),
        *("--data", "digits", "--alpha", "0.1", "--batch-size", "4"),
        *("--steps", "2", "--repeats", "1", "--no-jit-compile"),
        *("--backends", "torch", "--output", str(path)),
    )
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["MuffNet 0.1", "MobileNetV2"]
    for row in rows:
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
    assert float(rows[1]["step_to_peer"]) == 1
    ratio = float(rows[0]["step_images_s"]) / float(rows[1]["step_images_s"])
    assert abs(float(rows[0]["step_to_peer"]) / ratio - 1) < 0.05
