"""How long simulated devices and processes wait for each other: a busy machine's are late."""

# XLA complains after 20 s and ends the process after 40 unless it is told otherwise.
PATIENT = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)
