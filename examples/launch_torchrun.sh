#!/usr/bin/env bash
# Trains on one or several machines with torchrun. Call it on every machine with the same arguments:
#
#   NODES=2 HEAD=node0 examples/launch_torchrun.sh --config nuswide.yaml --trainer.default_root_dir /shared/runs
#
# NODES      number of machines (default 1)
# PROCESSES  processes on each machine (default: its GPUs, or 1)
# HEAD       machine for the rendezvous, with PORT open (default: this machine)
#
# The run folder must be on a file system that all machines share. To resume the newest run, add --ckpt_path last.
set -euo pipefail

gpus=$(command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus | wc -l || echo 0)
NODES=${NODES:-1}
PROCESSES=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
HEAD=${HEAD:-localhost}
PORT=${PORT:-29400}

exec torchrun --nnodes "$NODES" --nproc_per_node "$PROCESSES" \
  --rdzv_backend c10d --rdzv_endpoint "$HEAD:$PORT" --rdzv_id ovml \
  -m ovml fit "$@" --trainer.num_nodes "$NODES" --trainer.devices "$PROCESSES"
