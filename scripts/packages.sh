# The one list of Debian packages that BitNet needs, and the function that installs what is missing of them. Sourced
# by the other scripts; defines names and runs nothing. What each library uses is said in its CMakeLists.txt
# (bitnet_find), which names the same packages in its errors.

# To build the libraries, the `bitnet` executable and the benchmarks.
packages_build=(
  cmake ninja-build g++ libc6-dev
  libfmt-dev libspdlog-dev libtbb-dev nlohmann-json3-dev libpcre2-dev libeigen3-dev
  ocl-icd-opencl-dev libcxxopts-dev libyaml-cpp-dev libbenchmark-dev zlib1g-dev
)
# To build and run the tests: GoogleTest and RapidCheck, OpenMPI for training on several processes (BITNET_WITH_MPI),
# PoCL as the OpenCL device, the Arm cross compiler, qemu, clang-format.
packages_test=(
  git clang-format libgtest-dev libgmock-dev librapidcheck-dev libopenmpi-dev openmpi-bin pocl-opencl-icd
  g++-aarch64-linux-gnu qemu-user-static
)
# What `test.sh --full` needs besides.
packages_full=(clang oclgrind)

# install_packages <package>…: installs those that are not installed, with apt, as root or through sudo. Touches
# neither apt nor the network when all are there.
install_packages() {
  local missing=() package as_root=()
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  if [ ${#missing[@]} -eq 0 ]; then
    echo "packages: all $# are installed"
    return 0
  fi
  echo "packages: installing ${missing[*]}"
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
      echo "error: not root and no sudo; as root, run: apt-get install ${missing[*]}" >&2
      return 1
    }
    as_root=(sudo)
  fi
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q </dev/null
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null
}

# use_ccache: lets CMake compile through ccache where it is installed.
use_ccache() {
  if command -v ccache >/dev/null && [ -z "${CMAKE_CXX_COMPILER_LAUNCHER:-}" ]; then
    export CMAKE_CXX_COMPILER_LAUNCHER=ccache
  fi
}

# step <words>…: says what happens next.
step() { printf '\n== %s\n' "$*"; }
