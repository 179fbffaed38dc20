#!/usr/bin/env bash
# Installs what `make e2e-aws` speaks to instead of a cloud, unless it is there:
# moto's server in a virtual environment of this folder, and versitygw, an S3
# server that honours conditional writes, which moto's does not.
set -euo pipefail
version=5.2.1 versitygw=v1.8.0
if ! command -v versitygw >/dev/null && [[ ! -x .cache/bin/versitygw ]]; then
  echo "setup-aws: installing versitygw $versitygw into .cache/bin"
  mkdir -p .cache/bin
  GOBIN=$PWD/.cache/bin go install "github.com/versity/versitygw/cmd/versitygw@$versitygw" 2>/dev/null || {
    echo "setup-aws: it failed: GOBIN=$PWD/.cache/bin go install github.com/versity/versitygw/cmd/versitygw@$versitygw" >&2
    exit 1
  }
fi
command -v moto_server >/dev/null && exit 0
[[ -x .cache/moto/bin/moto_server ]] && exit 0
command -v python3 >/dev/null || { echo "setup-aws: python3 is missing: apt-get install -y python3 python3-venv" >&2; exit 1; }
echo "setup-aws: installing moto $version into .cache/moto"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { python3 -m venv .cache/moto && .cache/moto/bin/pip install "moto[ec2,ebs,server]==$version"; } >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  rm -rf .cache/moto # half of one is none
  echo "setup-aws: it failed; where python3 has no venv: apt-get install -y python3-venv; then run make e2e-aws again" >&2
  exit 1
fi
