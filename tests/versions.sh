#!/usr/bin/env bash
# Tests the wheel with the lowest and with the newest versions of every dependency. Not part of CI.
#
#   tests/versions.sh [lowest-3.10 newest-3.14 ...]     default: lowest and newest for each of Python 3.10 to 3.14
#
# Builds sdist and wheel and checks them. For every argument it makes an environment with the wheel, and runs in a folder outside the
# repository, which holds what the sdist holds beside the package: the tests, a user's script (also `mypy --strict` on it), an analysis.
# "lowest" takes, of every dependency that pyproject.toml names, the lowest version within its bounds that has a wheel for that Python.
# Old packages use what newer ones deprecate: deprecations are errors with the newest versions only.
#
# Needs uv (pip install uv) and interpreters that uv finds; those that are missing are skipped by name. Environment variables:
#   PLACE   the folder to work in, kept afterwards; default: a temporary one. Torch from PyPI brings some 5 GB of CUDA libraries, which
#           are shared by hard links where uv's cache ($UV_CACHE_DIR) is on the same disk.
#   REQUIRE further requirements, e.g. torch==2.13.0; default: none
#   TESTS   options and files for pytest; default: -n 2
set -euo pipefail
cd "$(dirname "$0")/.."

place=${PLACE:-$(mktemp -d)}
[ -n "${PLACE:-}" ] || trap 'rm -rf "$place"' EXIT
export MPLBACKEND=Agg OMP_NUM_THREADS=1
unset PYTHONPATH
read -ra required <<< "${REQUIRE:-}"
read -ra tests <<< "${TESTS:--n 2}"
[ $# -gt 0 ] || set -- {lowest,newest}-3.{10,11,12,13,14}

rm -rf "$place/dist" "$place/outside"
uv build --quiet --out-dir "$place/dist" .
wheel=$(echo "$place"/dist/isometry-*.whl)
uvx --quiet twine check --strict "$place"/dist/isometry-*
mkdir -p "$place/outside"
tar -xzf "$place"/dist/isometry-*.tar.gz -C "$place/outside" --strip-components 1
rm -r "$place/outside/isometry" # the wheel is what is tested
cd "$place/outside"

failed=()
for kind in "$@"; do
    version=${kind#*-}
    case $kind in
        lowest-*) resolution=lowest-direct ignored=(-Wignore::{Deprecation,PendingDeprecation,Future}Warning) ;;
        newest-*) resolution=highest ignored=() ;;
        *) echo "got $kind; it takes lowest-3.10 or newest-3.14, for instance" >&2; exit 2 ;;
    esac
    if ! uv venv --quiet --clear --python "$version" "$place/$kind"; then
        echo "== $kind: not tested, no interpreter"
        continue
    fi
    python=$place/$kind/bin/python
    echo "== $kind"
    uv pip install --quiet --only-binary :all: --resolution "$resolution" --python "$python" -r pyproject.toml --extra test "${required[@]}" &&
        uv pip install --quiet --no-deps --python "$python" "$wheel" &&
        uv pip list --python "$python" --format freeze | grep -E '^(torch|torch.pruning|numpy|scipy|pandas|matplotlib|tqdm|safetensors|scikit-learn|pooch|joblib|filelock)=' | xargs &&
        "$python" tests/user_script.py &&
        uvx --quiet mypy --strict --python-executable "$python" tests/user_script.py &&
        "$python" analyses/jsv_vs_ratio.py --quick --runs "$place/runs-$kind" &&
        "$python" -m pytest "${ignored[@]}" "${tests[@]}" ||
        failed+=("$kind")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
