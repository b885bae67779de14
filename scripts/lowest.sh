#!/usr/bin/env bash
# Tests the oldest versions of every package that pyproject.toml promises, in .venv-lowest. Needs a network.
# PYTHON: the oldest Python that is promised. Arguments go to pytest; without any, the fast tests run.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3.10}
VENV=.venv-lowest
if [ ! -x "$VENV/bin/uv" ]; then
  "$PYTHON" -m venv "$VENV"
  "$VENV/bin/pip" install --quiet uv
fi
"$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --resolution lowest-direct -e ".[test]" -e models
"$VENV/bin/uv" pip list --python "$VENV/bin/python" | grep -iE "^(torch|diffusers|transformers|numpy|scipy|pillow) "
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Other packages' warnings of today were not yet fixed in their old versions; ours are errors in `make test`.
[ $# -gt 0 ] || set -- -n 2 --dist loadfile -m "not slow and not browser"
exec "$VENV/bin/python" -m pytest -W default "$@"
