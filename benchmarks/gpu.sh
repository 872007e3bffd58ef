#!/usr/bin/env bash
# The GPU checks and measurements, three parts of less than ten minutes each.
#   benchmarks/gpu.sh check|bench|cifar10 [--wheels FOLDER] [--out FOLDER] [--data FOLDER]
#                                         [--device cpu] [--tiny]
# Each prints a table and writes JSON. Needs a CUDA build of torch with Triton.
# --wheels: a folder of wheels (numpy, safetensors, rich, matplotlib with their dependencies, and
# for bench spikingjelly and scipy), installed without a network beside the existing torch; without
# it everything must be installed already.
# --device cpu --tiny: the same on a CPU with small sizes, to check that the script runs.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
arguments=()
while (($#)); do
  if [[ $1 == --wheels ]]; then
    environment=$(mktemp -d)
    "$python" -m venv --system-site-packages "$environment"
    "$environment/bin/pip" install --quiet --no-index --no-deps --find-links "$2" "$2"/*.whl
    python=$environment/bin/python
    shift 2
  else
    arguments+=("$1")
    shift
  fi
done
PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} exec "$python" benchmarks/gpu.py "${arguments[@]}"
