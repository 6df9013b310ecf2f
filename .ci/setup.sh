#!/usr/bin/env bash
# Creates .venv with the pinned set and the project itself; run it through `make setup`.
#   EXTRA=cuda       the CUDA builds of fbgemm and torch instead of the CPU ones
#   TORCH_INDEX=URL  take torch, and only torch, from this package index
#   PYTHON=PATH      the Python 3.11 to use
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
variant=${EXTRA:-cpu}
requirements=.ci/requirements-$variant.txt

fail() {
    echo "setup: $*" >&2
    exit 1
}

is_python_311() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3}; do
        if command -v "$candidate" >/dev/null && is_python_311 "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 is needed and ${PYTHON:-neither python3.11 nor python3} is not it:" \
        "install it, or name one: make setup PYTHON=/path/to/python3.11"
}

case $variant in
cpu | cuda) ;;
*) fail "EXTRA=$variant is unknown; allowed: cpu (the default) or cuda, for example: make setup EXTRA=cuda" ;;
esac
[[ $(uname -sm) == "Linux x86_64" ]] || fail "the pinned packages are built for Linux x86_64; this is $(uname -sm)"

# The CPU and the CUDA build of fbgemm overwrite each other's files, so they never share an environment.
if [[ -d $venv && $(cat "$venv/.variant" 2>/dev/null) != "$variant" ]]; then
    echo "==> $venv was not made for '$variant': making it anew"
    rm -rf "$venv"
fi
if ! is_python_311 "$venv/bin/python"; then
    rm -rf "$venv"
    python=$(find_python)
    echo "==> creating $venv with $python"
    "$python" -m venv "$venv" ||
        fail "$python cannot create virtual environments; its venv module is packaged apart (Debian: python3.11-venv)"
    echo "$variant" >"$venv/.variant"
fi

install() {
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input "$@"
}

if [[ -n ${TORCH_INDEX:-} ]]; then
    echo "==> torch from $TORCH_INDEX"
    install --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' .ci/requirements-base.txt)"
fi
echo "==> the pinned packages of $requirements (about 1 GB to download the first time)"
install -r "$requirements"
if [[ -f .ci/requirements-$variant-nodeps.txt ]]; then
    install --no-deps -r ".ci/requirements-$variant-nodeps.txt"
fi
echo "==> the project itself"
install --no-deps --no-build-isolation --editable .
"$venv/bin/python" -c 'import fbgemm_gpu, torch, torchrec' ||
    fail "torch, fbgemm and torchrec were installed but do not load: try rm -r $venv && make setup"
echo "==> the attention kernels, compiled for this CPU"
"$venv/bin/python" -c 'from foundation.hstu.attention import cpu_backend; exit(cpu_backend.unavailable())' ||
    echo "setup: everything works without them, but several times slower; hypercast doctor repeats the reason" >&2
echo "==> ready: $venv/bin/hypercast --help"
