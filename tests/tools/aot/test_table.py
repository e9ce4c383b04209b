"""The rows of compilations have the cost of retrieval beside its FLOPs."""

from tools.aot import table


def test_the_table_has_the_cost_of_retrieval_beside_its_flops():
    row = {
        "topology": "v5e:4x4",
        "retrieval": False,
        "status": "ok",
        "mesh": [16, 1],
        "accumulation": 2,
        "remat": "full",
        "parameters_per_chip": 5e6,
        "argument_bytes": 2**30,
        "peak_bytes": 2**33,
        "hbm_bytes": 2**34,
        "model_flops": 1e12,
        "program_flops": 2e12,
        "traffic_bytes": 3e9,
        "sent_bytes": 7.5e9,
        "compute_s": 1.0,
        "hbm_s": 2.0,
        "ici_s": 3.0,
        "longest_s": 3.0,
        "sum_s": 6.0,
        "mfu_longest": 0.4,
        "mfu_sum": 0.2,
        "limit": "ICI",
        "compile_s": 60.0,
        "compile_peak_bytes": 2**31,
    }
    on = row | {"retrieval": True, "model_flops": 1.5e12, "longest_s": 6.0}
    first, second, beside = table.table_rows([on, row])
    assert (first["retrieval"], second["retrieval"]) == ("on", "off")
    assert second["state and batch (GiB)"] == 1
    assert second["HBM peak / there (GiB)"] == "8.0 / 16"
    assert (second["model TFLOP/chip"], second["program TFLOP/chip"]) == (1, 2)
    assert (second["HBM traffic (GB)"], second["sent over ICI (GB)"]) == (3, 7.5)
    assert second["compute / HBM / ICI (s)"] == "1.00 / 2.00 / 3.00"
    assert (second["step (s)"], second["MFU"]) == ("3.00 to 6.00", "40% to 20%")
    assert second["limited by"] == "ICI"
    assert (second["compile (s)"], second["compile peak (GiB)"]) == (60, 2)
    assert beside["FLOPs ratio"] == 1.5
    assert beside["step ratio"] == "2.00 (overlapped) to 1.00"
    assert beside["on (s)"] == "6.00 to 6.00"
