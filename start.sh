#!/usr/bin/env bash
# Creates .venv, installs the requirements and serves the page; options go to `python -m app` (see its --help).
set -euo pipefail
cd "$(dirname "$0")"
. ./environment.sh

make_environment requirements.txt
exec .venv/bin/python -m app "$@"
