"""A command on two processes of the CPU, as people start it. ``accelerate launch --cpu`` would
start one, whatever ``--num_processes`` says; the command itself has to stay on the CPU.
"""

import os
import subprocess
import sys

ON_TWO = (
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
)


def accelerate_launch(*command):
    """What it prints; fails where it does."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", *ON_TWO, "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*launch, *map(str, command)], stdout=subprocess.PIPE, text=True, timeout=900, check=True, env=environment
    )
    return ended.stdout
