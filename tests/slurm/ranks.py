"""What a rank of a job is and has, as a line of JSON: ``srun ... python -m tests.slurm.ranks``."""

import json
import os
import socket

from galmerhpc import parallel


def main() -> None:
    visible = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    rank = {
        "rank": parallel.rank(),
        "size": parallel.size(),
        "local_rank": parallel.local_rank(),
        "host": socket.gethostname(),
        "node": os.environ["SLURMD_NODENAME"],
        "visible": visible,
        "device": parallel.own_device(visible, parallel.local_rank()) if visible else "",
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }
    for line in parallel.gather(json.dumps(rank)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
