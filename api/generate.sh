#!/bin/sh
# Makes the Python stubs in cri_shim/_pb from the .proto files beside this script.
#
#   api/generate.sh           writes them
#   api/generate.sh --check   writes nothing; fails and shows the difference if they are not fresh
#
# Needs grpcio-tools and mypy-protobuf of the versions that the "dev" extra pins: the output depends on them.
# PYTHON chooses the interpreter that has them (default: python3 of the PATH).
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-python3}
protos="cri/v1/api.proto cri/v1alpha2/api.proto admin/v1/admin.proto ttrpc/v1/ttrpc.proto shim/v2/task.proto"

case "${1-}" in
'' | --check) ;;
*)
    echo "usage: api/generate.sh [--check]" >&2
    exit 2
    ;;
esac

scripts=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
for plugin in protoc-gen-mypy protoc-gen-mypy_grpc; do
    if [ ! -x "$scripts/$plugin" ]; then
        echo "api/generate.sh: $scripts/$plugin is missing: $python -m pip install -e '.[dev]'" >&2
        exit 1
    fi
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# api/ is mapped to cri_shim/_pb/ so that the stubs import each other by their real module names and every
# file has a name of its own in protobuf's process-wide descriptor pool.
names=
for proto in $protos; do
    names="$names cri_shim/_pb/$proto"
done
# shellcheck disable=SC2086  # the names hold no spaces, and must become words
(cd "$root/api" && "$python" -m grpc_tools.protoc \
    --proto_path=cri_shim/_pb=. \
    --plugin=protoc-gen-mypy="$scripts/protoc-gen-mypy" \
    --plugin=protoc-gen-mypy_grpc="$scripts/protoc-gen-mypy_grpc" \
    --python_out="$work" --grpc_python_out="$work" \
    --mypy_out=quiet:"$work" --mypy_grpc_out=quiet:"$work" \
    $names)

# Compared and replaced are the generated files only: the packages' __init__.py are written by hand.
fresh=$work/cri_shim/_pb
kept=$root/cri_shim/_pb
list() { (cd "$1" && find . -name '*_pb2*.py' -o -name '*_pb2*.pyi') | sort; }

if [ "${1-}" = --check ]; then
    stale=0
    list "$fresh" >"$work/fresh"
    list "$kept" >"$work/kept"
    for name in $(sort -u "$work/fresh" "$work/kept"); do
        for side in "$fresh" "$kept"; do
            [ -e "$side/$name" ] || echo "missing: $side/$name"
        done
        if ! cmp -s "$kept/$name" "$fresh/$name"; then
            echo "stale: cri_shim/_pb/${name#./}"
            diff -u "$kept/$name" "$fresh/$name" | head -n 40 || true
            stale=1
        fi
    done
    if [ "$stale" -ne 0 ]; then
        echo "api/generate.sh: the stubs don't match api/*.proto: run api/generate.sh" >&2
        exit 1
    fi
    exit 0
fi

for name in $(list "$kept"); do
    [ -e "$fresh/$name" ] || rm "$kept/$name"
done
for name in $(list "$fresh"); do
    mkdir -p "$(dirname "$kept/$name")"
    cp "$fresh/$name" "$kept/$name"
done
