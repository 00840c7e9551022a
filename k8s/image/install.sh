#!/bin/sh
# Installs what the image holds; the working directory is the project's.
#   install.sh dependencies ROOT cpu|cuda    ROOT/dependencies: an environment with the libraries, from constraints.txt
#   install.sh mesh ROOT                     ROOT/mesh: the project, which that environment finds there
set -eu
what=$1 root=$2
install() {
    "$root/builder/bin/pip" --python "$root/dependencies/bin/python" install --quiet --constraint constraints.txt "$@"
}
case $what in
dependencies)
    python3 -m venv "$root/builder"
    "$root/builder/bin/pip" install --quiet --constraint constraints.txt hatchling grpcio-tools
    python3 -m venv --without-pip "$root/dependencies"
    case $3 in
    # What comes without PyTorch's index of CPU builds computes on NVIDIA's cards, and brings their libraries: 5 GB.
    cpu) install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch ;;
    cuda) ;;
    *) echo "the device must be cpu or cuda, got $3" >&2 && exit 2 ;;
    esac
    "$root/builder/bin/python" k8s/image/requirements.py server redis tracing >"$root/builder/requirements.txt"
    install --requirement "$root/builder/requirements.txt"
    echo "$root/mesh" >"$("$root/dependencies/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/mesh.pth"
    ;;
mesh)
    "$root/builder/bin/pip" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$root/builder/wheels" .
    install --no-deps --target "$root/mesh" "$root"/builder/wheels/chroma_mesh-*.whl
    ;;
*) echo "install.sh must be told dependencies or mesh, got $what" >&2 && exit 2 ;;
esac
